//! Where a database is and who asks it: the mounted Secret, read once. Nothing of it but its name and the
//! names of its entries is ever said.

use graftwork_contract::dataset::{DatabaseKind, Source, database_secret as entry};
use graftwork_contract::uri::Host;

use crate::failure::Failure;
use crate::secret::{Hidden, Mounted};

/// A database and who asks it.
#[derive(Debug)]
pub struct Login {
    /// The host, which has not been looked up.
    pub host: Host,
    /// The port.
    pub port: u16,
    /// The database.
    pub database: Hidden,
    /// Who asks.
    pub user: Hidden,
    /// With which password.
    pub password: Option<Hidden>,
    /// How the connection is protected.
    pub tls: Tls,
    /// The certificates that the server's has to come from, as PEM.
    pub authority: Option<Vec<u8>>,
}

/// How a connection is protected, by the words of libpq.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tls {
    /// Not at all.
    Disable,
    /// Encrypted. Whose the server is, is checked where the Secret has certificates.
    Require,
    /// Encrypted, and the server's certificate is for this host and of a known authority.
    VerifyFull,
}

/// Reads the Secret of a source.
///
/// # Errors
/// A Secret or an entry that is not there, or that is nothing of what is read; by the entry's name.
pub fn read(source: &Source, kind: DatabaseKind) -> Result<Login, Failure> {
    let secret = Mounted::new(source);
    let mut login = match secret.text(entry::URI)? {
        Some(uri) => {
            let read = match kind {
                DatabaseKind::Postgres => postgres_uri(&uri),
            };
            read.map_err(|problem| secret.bad(&format!("the connection URI {problem}")))?
        }
        None => parts(&secret)?,
    };
    login.authority = secret.bytes(entry::AUTHORITY)?;
    Ok(login)
}

/// The login by its parts, as operators of databases write Secrets.
fn parts(secret: &Mounted<'_>) -> Result<Login, Failure> {
    let user = match secret.text(entry::USER)? {
        Some(user) => Some(user),
        None => secret.text(entry::USERNAME)?,
    };
    let (Some(host), Some(user)) = (secret.text(entry::HOST)?, user) else {
        return Err(missing(secret));
    };
    let bad = |problem: &str| secret.bad(problem);
    let port = secret.text(entry::PORT)?;
    let tls = secret.text(entry::TLS)?;
    let database = secret.text(entry::DATABASE)?;
    Ok(Login {
        host: Host::parse(&host).map_err(|_| bad("host has no plain host name or address"))?,
        port: port
            .as_deref()
            .map_or(Ok(POSTGRES_PORT), read_port)
            .map_err(bad)?,
        database: Hidden::new(database.unwrap_or_else(|| user.clone())),
        user: Hidden::new(user),
        password: secret.text(entry::PASSWORD)?.map(Hidden::new),
        tls: tls
            .as_deref()
            .map_or(Ok(Tls::Require), read_tls)
            .map_err(bad)?,
        authority: None,
    })
}

/// A Secret that is not there, or lacks what is read. It may come, as a file of a volume may.
fn missing(secret: &Mounted<'_>) -> Failure {
    let named = secret.uri().strip_prefix("secret://").unwrap_or_default();
    let (name, lacks) = match named.split_once('/') {
        Some((name, key)) => (name, format!("nothing under its key \"{key}\"")),
        None => {
            let (host, user) = (entry::HOST, entry::USER);
            (named, format!("nothing under \"{host}\" or \"{user}\""))
        }
    };
    Failure::source_not_found(format!(
        "{}: spec.sources[{}].postgres.secretRef: there is no Secret \"{name}\", or it has {lacks}; create it in \
         the Dataset's namespace, and it is found by itself",
        secret.title(),
        secret.source_name(),
    ))
}

/// The port of PostgreSQL.
const POSTGRES_PORT: u16 = 5432;

/// Reads `postgresql://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=MODE`. A problem repeats no part of the
/// URI: a password with a stray slash or question mark is in any of them.
fn postgres_uri(uri: &str) -> Result<Login, &'static str> {
    let rest = uri
        .strip_prefix("postgresql://")
        .or_else(|| uri.strip_prefix("postgres://"))
        .ok_or("does not begin with postgresql://")?;
    let (rest, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
    let (user, host) = authority.rsplit_once('@').ok_or("names no user")?;
    let (user, password) = match user.split_once(':') {
        Some((user, password)) => (user, Some(password)),
        None => (user, None),
    };
    let (host, port) = match host.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']').ok_or("has no plain host")?;
            let port = after.strip_prefix(':');
            if port.is_none() && !after.is_empty() {
                return Err("has no plain host");
            }
            (host, port)
        }
        None => match host.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (host, None),
        },
    };
    let mut tls = Tls::Require;
    for parameter in parameters.split('&').filter(|it| !it.is_empty()) {
        match parameter.split_once('=') {
            Some(("sslmode", mode)) => tls = read_tls(mode)?,
            // They change nothing about what is asked, and other clients have them.
            Some(("application_name" | "connect_timeout", _)) => {}
            _ => {
                return Err(
                    "has a parameter other than sslmode, application_name and connect_timeout",
                );
            }
        }
    }
    let user = decoded(user)?;
    if user.is_empty() {
        return Err("names no user");
    }
    let database = decoded(database)?;
    Ok(Login {
        host: Host::parse(host).map_err(|_| "has no plain host name or address")?,
        port: port.map_or(Ok(POSTGRES_PORT), read_port)?,
        database: Hidden::new(if database.is_empty() {
            user.clone()
        } else {
            database
        }),
        user: Hidden::new(user),
        password: password.map(decoded).transpose()?.map(Hidden::new),
        tls,
        authority: None,
    })
}

fn read_port(text: &str) -> Result<u16, &'static str> {
    let number = text.parse().ok().filter(|number: &u16| *number != 0);
    number.ok_or("has no port from 1 to 65535")
}

fn read_tls(text: &str) -> Result<Tls, &'static str> {
    match text {
        "disable" => Ok(Tls::Disable),
        "require" => Ok(Tls::Require),
        "verify-full" => Ok(Tls::VerifyFull),
        // Those that may fall back to no protection without a word, and one that trusts any host.
        _ => Err("has an sslmode other than disable, require and verify-full"),
    }
}

/// Undoes percent-encoding.
fn decoded(text: &str) -> Result<String, &'static str> {
    const PROBLEM: &str = "has a percent sign that encodes nothing";
    let mut pieces = text.split('%');
    let mut bytes = pieces.next().unwrap_or_default().as_bytes().to_vec();
    for piece in pieces {
        let (code, rest) = piece.split_at_checked(2).ok_or(PROBLEM)?;
        if !code.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(PROBLEM);
        }
        bytes.push(u8::from_str_radix(code, 16).map_err(|_| PROBLEM)?);
        bytes.extend(rest.bytes());
    }
    if bytes.contains(&0) {
        return Err("has a zero byte");
    }
    String::from_utf8(bytes).map_err(|_| "is not UTF-8")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;

    fn source(folder: &Path) -> Source {
        Source {
            name: "decisions".to_owned(),
            uri: "secret://warehouse/url".to_owned(),
            path: folder.to_str().unwrap().to_owned(),
            root: None,
            columns: BTreeMap::new(),
            digest: None,
            query: None,
            remote: None,
            share: None,
        }
    }

    fn mounted(entries: &[(&str, &str)]) -> Result<Login, Failure> {
        mounted_of("secret://warehouse/url", entries)
    }

    fn mounted_of(uri: &str, entries: &[(&str, &str)]) -> Result<Login, Failure> {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in entries {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let source = Source {
            uri: uri.to_owned(),
            ..source(folder.path())
        };
        read(&source, DatabaseKind::Postgres)
    }

    #[test]
    fn a_connection_uri_is_read_with_all_its_parts() {
        let uri = "postgresql://ann%40corp:p%2Fq%3A%25@warehouse.databases.svc:6432/claims?sslmode=verify-full&application_name=x\n";
        let login = mounted(&[("uri", uri), ("ca.crt", "PEM")]).unwrap();
        assert_eq!(login.host, Host::Name("warehouse.databases.svc".to_owned()));
        assert_eq!((login.port, login.tls), (6432, Tls::VerifyFull));
        assert_eq!(login.user.reveal(), "ann@corp");
        assert_eq!(login.password.unwrap().reveal(), "p/q:%");
        assert_eq!(login.database.reveal(), "claims");
        assert_eq!(login.authority.as_deref(), Some(&b"PEM"[..]));

        let short = mounted(&[("uri", "postgres://ann@[2a00::1]")]).unwrap();
        assert_eq!(short.host, Host::Address("2a00::1".parse().unwrap()));
        assert_eq!((short.port, short.tls), (5432, Tls::Require));
        assert_eq!(short.database.reveal(), "ann");
        assert!(short.password.is_none() && short.authority.is_none());
    }

    #[test]
    fn secrets_of_other_operators_are_read_by_their_parts() {
        let login = mounted(&[
            ("host", "10.1.2.3"),
            ("port", "6432"),
            ("username", "ann"),
            ("password", "p\n"),
            ("dbname", "claims"),
            ("sslmode", "disable"),
        ])
        .unwrap();
        assert_eq!(login.host, Host::Address([10, 1, 2, 3].into()));
        assert_eq!((login.port, login.tls), (6432, Tls::Disable));
        assert_eq!(login.user.reveal(), "ann");
        assert_eq!(login.password.unwrap().reveal(), "p");
        assert_eq!(login.database.reveal(), "claims");
    }

    #[test]
    fn a_secret_that_is_not_there_is_looked_for_again_and_named() {
        for entries in [&[][..], &[("password", "p")], &[("host", "h"), ("uri", "")]] {
            let failure = mounted(entries).unwrap_err();
            assert_eq!(failure.reason, "SourceNotFound", "{failure}");
            for part in [
                "secret://warehouse/url",
                "spec.sources[decisions].postgres.secretRef",
                "no Secret \"warehouse\"",
                "its key \"url\"; create it",
            ] {
                assert!(failure.message.contains(part), "{failure}");
            }
        }
        let failure = mounted_of("secret://warehouse", &[]).unwrap_err();
        let words =
            "no Secret \"warehouse\", or it has nothing under \"host\" or \"user\"; create it";
        assert!(failure.message.contains(words), "{failure}");
    }

    #[test]
    fn what_is_no_login_is_refused_and_no_part_of_it_is_repeated() {
        for uri in [
            "mysql://SECRET:SECRET@host/SECRET",
            "postgres://host/SECRET",
            "postgres://:SECRET@host/db",
            "postgres://ann:SEC/RET@host/db",
            "postgres://ann:SEC?RET@host/db",
            "postgres://ann:SECRET@host:SECRET/db",
            "postgres://ann:SECRET@host:0/db",
            "postgres://ann:SECRET@host,other/db",
            "postgres://ann:SECRET@%2Fvar%2Frun/db",
            "postgres://ann:SECRET@/db?host=/var/run",
            "postgres://ann:SECRET@host/db?host=SECRET",
            "postgres://ann:SECRET@host/db?options=-c%20SECRET",
            "postgres://ann:SECRET@host/db?sslmode=prefer",
            "postgres://ann:SECRET@host/db?sslmode=verify-ca",
            "postgres://ann:SECRET%zz@host/db",
            "postgres://ann:SECRET%00@host/db",
            "postgres://ann:SECRET%ff@host/db",
            "postgres://ann:SECRET@127.1/db",
            "postgres://ann:SECRET@[::1/db",
            "host=h user=u password=SECRET",
        ] {
            let failure = mounted(&[("uri", uri)]).unwrap_err();
            assert_eq!(failure.reason, "SourceDenied", "{uri}");
            let told = format!("{failure}");
            assert!(!told.contains("SEC") && !told.contains("RET@"), "{told}");
        }
        let failure = mounted(&[("host", "h"), ("user", "u"), ("port", "SECRET")]).unwrap_err();
        assert!(!failure.message.contains("SECRET"), "{failure}");
    }

    #[test]
    fn a_login_that_is_printed_shows_no_credentials() {
        let login = mounted(&[("uri", "postgres://ANN:SECRET@host/CLAIMS")]).unwrap();
        let printed = format!("{login:?}");
        for hidden in ["ANN", "SECRET", "CLAIMS"] {
            assert!(!printed.contains(hidden), "{printed}");
        }
    }
}
