//! The authorities that a server's certificate has to come from: those of a Secret, or those that browsers
//! know. Images hold none.

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

/// Those that browsers know.
pub fn known() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let known = webpki_root_certs::TLS_SERVER_ROOT_CERTS;
    roots.add_parsable_certificates(known.iter().cloned());
    roots
}

/// Those of a Secret's `ca.crt`.
///
/// # Errors
/// What is wrong with it.
pub fn of_pem(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|_| "ca.crt is not PEM".to_owned())?;
        roots
            .add(certificate)
            .map_err(|error| format!("ca.crt: {error}"))?;
    }
    if roots.is_empty() {
        return Err("ca.crt has no certificate".to_owned());
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_without_a_usable_certificate_is_refused() {
        for pem in [
            &b""[..],
            b"nonsense",
            b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            b"-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n",
        ] {
            let problem = of_pem(pem).unwrap_err();
            assert!(problem.starts_with("ca.crt"), "{problem}");
        }
    }
}
