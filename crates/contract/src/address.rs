//! Which hosts data may come from. Names and addresses of the machine, of the cluster and of the cloud's
//! metadata are refused unless the installation allows them: who writes a Dataset must not reach what
//! only the cluster reaches.
//!
//! A host is checked twice: by its name before it is looked up, and by every address that it has. What
//! comes out is a [`Checked`], whose addresses are what a client connects to. It never looks up the name
//! again, because a name may have another address then.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use thiserror::Error;

use crate::uri::{Host, WebUri};

/// Most redirects of one download.
pub const MAXIMUM_REDIRECTS: usize = 5;

/// Whose an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reach {
    /// Everybody's.
    Public,
    /// This machine's.
    Loopback,
    /// This wire's.
    LinkLocal,
    /// The cloud's, where it hands out credentials.
    Metadata,
    /// A network's of its own: the cluster's, the company's, a carrier's.
    Private,
    /// A group's.
    Multicast,
    /// Nobody's: unspecified, for documentation, for tests, or reserved.
    Reserved,
}

/// Addresses at which clouds hand out credentials (AWS, Azure and Google; AWS's tasks and pods; these over IPv6; Google
/// over IPv6; Azure's host; Alibaba; Oracle).
const METADATA: [IpAddr; 9] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 23)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
];

/// Ends of names that only a machine, a cluster or a company knows (RFC 6761, 6762, 8375; Kubernetes).
const INTERNAL_NAMES: [&str; 10] = [
    "localhost",
    "localdomain",
    "local",
    "internal",
    "svc",
    "cluster",
    "home.arpa",
    "lan",
    "intranet",
    "corp",
];

/// Whose an address is (the IANA registries of special addresses). IPv4 addresses within IPv6 ones count
/// as themselves: mapped, compatible, translated (RFC 6052), 6to4 and Teredo.
pub fn reach(address: IpAddr) -> Reach {
    if METADATA.contains(&address) {
        return Reach::Metadata;
    }
    match address {
        IpAddr::V4(address) => reach_v4(address),
        IpAddr::V6(address) => match within(address) {
            Some(inner) => reach(IpAddr::V4(inner)),
            None => reach_v6(address),
        },
    }
}

fn reach_v4(address: Ipv4Addr) -> Reach {
    match address.octets() {
        [127, ..] => Reach::Loopback,
        [169, 254, ..] => Reach::LinkLocal,
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] | [100, 64..=127, ..] => Reach::Private,
        [224..=239, ..] => Reach::Multicast,
        [0 | 240..=255, ..]
        | [192, 0, 0 | 2, _]
        | [192, 88, 99, _]
        | [198, 18 | 19, ..]
        | [198, 51, 100, _]
        | [203, 0, 113, _] => Reach::Reserved,
        _ => Reach::Public,
    }
}

fn reach_v6(address: Ipv6Addr) -> Reach {
    let segments = address.segments();
    // Of what is given out to the world, protocols' own and documentation's.
    let special = matches!(
        segments,
        [0x2001, 0xdb8 | 0..=0x1ff, ..] | [0x3fff, 0..=0xfff, ..]
    );
    match segments {
        [0, 0, 0, 0, 0, 0, 0, 1] => Reach::Loopback,
        [0xfe80..=0xfebf, ..] => Reach::LinkLocal,
        // The second one was given up and is still used.
        [0xfc00..=0xfdff | 0xfec0..=0xfeff, ..] => Reach::Private,
        [0xff00..=0xffff, ..] => Reach::Multicast,
        [0x2000..=0x3fff, ..] if !special => Reach::Public,
        _ => Reach::Reserved,
    }
}

/// The IPv4 address that a packet to this one may end at.
fn within(address: Ipv6Addr) -> Option<Ipv4Addr> {
    if address.is_unspecified() || address.is_loopback() {
        return None;
    }
    let of = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    match address.segments() {
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low]
        | [0, 0, 0, 0, 0xffff, 0, high, low]
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low]
        | [0x64, 0xff9b, 1, _, _, _, high, low]
        | [0x2002, high, low, ..] => Some(of(high, low)),
        // Teredo turns the bits of its client's address around.
        [0x2001, 0, _, _, _, _, high, low] => Some(of(!high, !low)),
        _ => None,
    }
}

/// Addresses or names that the installation allows all the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Allowed {
    /// A network: its address, and how many bits of it count.
    Network(IpAddr, u8),
    /// A name, or with a point before it all names that end so.
    Name(String),
}

/// An entry that is neither a network nor a name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{0:?} is no network such as 10.1.0.0/16, and no name such as minio.storage.svc or .corp.example"
)]
pub struct InvalidAllowed(pub String);

impl FromStr for Allowed {
    type Err = InvalidAllowed;

    fn from_str(text: &str) -> Result<Self, InvalidAllowed> {
        let invalid = || InvalidAllowed(text.to_owned());
        if let Some((address, bits)) = text.split_once('/') {
            let address: IpAddr = address.parse().map_err(|_| invalid())?;
            let most = if address.is_ipv4() { 32 } else { 128 };
            let bits = bits.parse().ok().filter(|bits| *bits <= most);
            return Ok(Self::Network(address, bits.ok_or_else(invalid)?));
        }
        let name = text.strip_prefix('.').unwrap_or(text);
        let plain =
            |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-';
        if name
            .split('.')
            .all(|label| !label.is_empty() && label.chars().all(plain))
        {
            Ok(Self::Name(text.to_owned()))
        } else {
            Err(invalid())
        }
    }
}

impl Allowed {
    fn has_address(&self, address: IpAddr) -> bool {
        let Self::Network(network, bits) = self else {
            return false;
        };
        let (a, b, width) = match (network, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                (u128::from(a.to_bits()), u128::from(b.to_bits()), 32)
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits(), b.to_bits(), 128),
            _ => return false,
        };
        let free = width - u32::from(*bits);
        // All bits are free where the shift is as wide as the number.
        (a ^ b).checked_shr(free).unwrap_or(0) == 0
    }

    fn has_name(&self, name: &str) -> bool {
        match self {
            Self::Network(..) => false,
            Self::Name(known) if known.starts_with('.') => name.ends_with(known.as_str()),
            Self::Name(known) => known == name,
        }
    }
}

/// Why a host is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refused {
    /// A name that only a machine, a cluster or a company knows.
    #[error("host {0} is not reachable by everybody; the chart's values can allow it")]
    Name(String),
    /// An address that is not everybody's.
    #[error(
        "host {host} has the address {address}, which is {reach}; the chart's values can allow it"
    )]
    Address {
        /// The host.
        host: String,
        /// The address.
        address: IpAddr,
        /// Whose it is.
        reach: Reach,
    },
    /// No address at all.
    #[error("host {0} has no address")]
    Nowhere(String),
    /// One redirect too many.
    #[error("more than 5 redirects")]
    Redirects,
}

impl fmt::Display for Reach {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Public => "public",
            Self::Loopback => "the machine's own",
            Self::LinkLocal => "link-local",
            Self::Metadata => "the cloud's metadata service",
            Self::Private => "a private network's",
            Self::Multicast => "multicast",
            Self::Reserved => "reserved",
        })
    }
}

/// What the installation allows beside what everybody reaches.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Guard(pub Vec<Allowed>);

impl Guard {
    /// Reads the entries that the chart gives.
    ///
    /// # Errors
    /// The first one that is neither a network nor a name.
    pub fn parse(entries: &[String]) -> Result<Self, InvalidAllowed> {
        let read = entries.iter().map(|entry| entry.parse::<Allowed>());
        Ok(Self(read.collect::<Result<_, _>>()?))
    }
}

/// A URI and the addresses that were checked for it: what a client connects to, and in its `Host` header
/// and certificate the name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checked {
    uri: WebUri,
    addresses: Vec<SocketAddr>,
    redirects: usize,
}

impl Checked {
    /// The URI.
    pub fn uri(&self) -> &WebUri {
        &self.uri
    }

    /// Where to connect to.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }
}

impl Guard {
    /// Whether the installation names this host itself, whoever else may reach it.
    pub fn is_named(&self, host: &Host) -> bool {
        match host {
            Host::Name(name) => self.allows_name(name),
            Host::Address(address) => self.0.iter().any(|it| it.has_address(*address)),
        }
    }

    /// Whether a host may be looked up at all.
    ///
    /// # Errors
    /// [`Refused::Name`], [`Refused::Address`]
    pub fn check_host(&self, host: &Host) -> Result<(), Refused> {
        match host {
            Host::Address(address) => self.check_address(host, *address),
            Host::Name(name) => {
                // A name of one part is whatever the resolver's search list makes of it.
                let internal = !name.contains('.')
                    || INTERNAL_NAMES.iter().any(|end| {
                        let head = name.strip_suffix(end);
                        head.is_some_and(|head| head.is_empty() || head.ends_with('.'))
                    })
                    || name.contains(".svc.");
                if internal && !self.allows_name(name) {
                    return Err(Refused::Name(name.clone()));
                }
                Ok(())
            }
        }
    }

    /// Checks a URI with the addresses that its host has. One that is refused refuses all: a name that
    /// has a good and a bad one is a trap.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn check(&self, uri: WebUri, resolved: &[IpAddr]) -> Result<Checked, Refused> {
        let addresses = self.check_addresses(&uri.host, uri.port, resolved)?;
        Ok(Checked {
            uri,
            addresses,
            redirects: 0,
        })
    }

    /// Checks a host with the addresses that it has, as [`Guard::check`] does: where a client may connect
    /// to, which does not look up the name again.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn check_addresses(
        &self,
        host: &Host,
        port: u16,
        resolved: &[IpAddr],
    ) -> Result<Vec<SocketAddr>, Refused> {
        self.check_host(host)?;
        let addresses = match host {
            Host::Address(address) => vec![*address],
            Host::Name(_) => resolved.to_vec(),
        };
        if addresses.is_empty() {
            return Err(Refused::Nowhere(host.to_string()));
        }
        for address in &addresses {
            self.check_address(host, *address)?;
        }
        Ok(addresses
            .into_iter()
            .map(|address| SocketAddr::new(address, port))
            .collect())
    }

    /// Checks where a redirect leads, as if it had been the first URI.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn check_redirect(
        &self,
        from: &Checked,
        to: WebUri,
        resolved: &[IpAddr],
    ) -> Result<Checked, Refused> {
        if from.redirects >= MAXIMUM_REDIRECTS {
            return Err(Refused::Redirects);
        }
        Ok(Checked {
            redirects: from.redirects + 1,
            ..self.check(to, resolved)?
        })
    }

    fn allows_name(&self, name: &str) -> bool {
        self.0.iter().any(|allowed| allowed.has_name(name))
    }

    /// A name that is allowed may have any address but those of metadata, link and loopback, which only a
    /// network allows.
    fn check_address(&self, host: &Host, address: IpAddr) -> Result<(), Refused> {
        let reach = reach(address);
        let named = match host {
            Host::Name(name) => {
                let is_near = matches!(reach, Reach::Metadata | Reach::LinkLocal | Reach::Loopback);
                self.allows_name(name) && !is_near
            }
            Host::Address(_) => false,
        };
        let allowed = named || self.0.iter().any(|allowed| allowed.has_address(address));
        if reach == Reach::Public || allowed {
            return Ok(());
        }
        Err(Refused::Address {
            host: host.to_string(),
            address,
            reach,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::uri::DataUri;

    fn web(text: &str) -> WebUri {
        match DataUri::parse(text) {
            Ok(DataUri::Web(uri)) => uri,
            other => panic!("{text}: {other:?}"),
        }
    }

    fn addresses(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_host_is_named_by_its_name_or_network_and_not_by_being_public() {
        let entries = ["presidio.privacy.svc", ".corp.example", "10.1.0.0/16"];
        let guard = Guard::parse(&entries.map(str::to_owned)).unwrap();
        for (host, is_named) in [
            ("presidio.privacy.svc", true),
            ("a.corp.example", true),
            ("10.1.2.3", true),
            ("10.2.2.3", false),
            ("8.8.8.8", false),
            ("analyzer.example.com", false),
        ] {
            assert_eq!(
                guard.is_named(&Host::parse(host).unwrap()),
                is_named,
                "{host}"
            );
        }
    }

    #[test]
    fn every_special_address_is_known() {
        use Reach::{LinkLocal, Loopback, Metadata, Multicast, Private, Public, Reserved};
        for (expected, texts) in [
            (
                Public,
                "8.8.8.8 172.15.255.255 172.32.0.0 100.63.0.1 100.128.0.1",
            ),
            (
                Public,
                "2606:4700::1 2a00:1450::1 ::ffff:8.8.8.8 64:ff9b::808:808",
            ),
            (
                Loopback,
                "127.0.0.1 127.255.255.254 ::1 ::ffff:127.0.0.1 ::127.0.0.1",
            ),
            (
                Loopback,
                "64:ff9b::7f00:1 2002:7f00:1:: 64:ff9b:1::7f00:1 ::ffff:0:7f00:1",
            ),
            (Loopback, "2001:0:1:2:3:4:80ff:fffe"),
            (
                LinkLocal,
                "169.254.0.1 169.254.169.253 fe80::1 febf::1 ::ffff:169.254.1.1",
            ),
            (
                Metadata,
                "169.254.169.254 169.254.170.2 169.254.170.23 168.63.129.16 100.100.100.200 192.0.0.192",
            ),
            (Metadata, "fd00:ec2::23 fd20:ce::254 ::ffff:168.63.129.16"),
            (
                Metadata,
                "fd00:ec2::254 ::ffff:169.254.169.254 64:ff9b::a9fe:a9fe 2002:a9fe:a9fe::1",
            ),
            (
                Private,
                "10.0.0.1 172.16.0.1 172.31.255.255 192.168.1.1 100.64.0.1",
            ),
            (
                Private,
                "fc00::1 fdff::1 fec0::1 ::ffff:10.0.0.1 2002:c0a8:1::",
            ),
            (Multicast, "224.0.0.1 239.255.255.255 ff02::1"),
            (
                Reserved,
                "0.0.0.0 0.1.2.3 255.255.255.255 240.0.0.1 192.0.2.1 ::",
            ),
            (
                Reserved,
                "198.18.0.1 198.51.100.1 203.0.113.1 192.88.99.1 192.0.0.8",
            ),
            (Reserved, "2001:db8::1 100::1 4000::1 3fff::1 2001:2::1"),
        ] {
            for text in texts.split_whitespace() {
                assert_eq!(reach(text.parse().unwrap()), expected, "{text}");
            }
        }
    }

    #[test]
    fn names_of_the_machine_and_the_cluster_are_refused_before_they_are_looked_up() {
        let guard = Guard::default();
        for host in [
            "localhost",
            "a.localhost",
            "kubernetes",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
            "x.svc.prod.example",
            "printer.local",
            "metadata",
            "metadata.google.internal",
            "ip-10-0-0-1.ec2.internal",
            "router.lan",
            "a.home.arpa",
            "localhost.localdomain",
            "wiki.corp",
            "a.intranet",
        ] {
            let host = Host::Name(host.to_owned());
            assert!(guard.check_host(&host).is_err(), "{host}");
        }
        for host in [
            "example.com",
            "locals.example",
            "svc.example.com",
            "notlocalhost.com",
        ] {
            assert_eq!(
                guard.check_host(&Host::Name(host.to_owned())),
                Ok(()),
                "{host}"
            );
        }
    }

    #[test]
    fn a_name_is_as_good_as_its_worst_address() {
        let guard = Guard::default();
        let check =
            |resolved: &[&str]| guard.check(web("https://example.com/a"), &addresses(resolved));
        let checked = check(&["8.8.8.8", "2606:4700::1"]).unwrap();
        let expected: [SocketAddr; 2] =
            ["8.8.8.8:443", "[2606:4700::1]:443"].map(|text| text.parse().unwrap());
        assert_eq!(checked.addresses(), expected);
        for bad in [
            "127.0.0.1",
            "10.0.0.1",
            "169.254.169.254",
            "::1",
            "::ffff:10.0.0.1",
            "0.0.0.0",
        ] {
            assert!(
                matches!(check(&["8.8.8.8", bad]), Err(Refused::Address { .. })),
                "{bad}"
            );
        }
        assert_eq!(check(&[]), Err(Refused::Nowhere("example.com".to_owned())));
        // An address in the URI is what is connected to, whatever a resolver says.
        let literal = guard.check(web("https://10.0.0.1/a"), &addresses(&["8.8.8.8"]));
        assert!(matches!(literal, Err(Refused::Address { .. })));
    }

    #[test]
    fn the_chart_allows_networks_and_names_and_never_metadata_by_name() {
        let allowed = [
            "10.1.0.0/16",
            "minio.storage.svc",
            ".corp.example",
            "fd12::/16",
        ];
        let guard = Guard(allowed.map(|text| text.parse().unwrap()).to_vec());
        for (text, resolved, fine) in [
            ("https://10.1.255.1/a", "8.8.8.8", true),
            ("https://10.2.0.1/a", "8.8.8.8", false),
            ("https://[fd12::1]/a", "8.8.8.8", true),
            ("https://[fd13::1]/a", "8.8.8.8", false),
            ("https://minio.storage.svc:9000/a", "172.20.0.9", true),
            ("https://minio.storage.svc/a", "127.0.0.1", false),
            ("https://minio.storage.svc/a", "169.254.169.254", false),
            ("https://minio.storage.svc/a", "169.254.170.23", false),
            ("https://minio.storage.svc/a", "169.254.1.1", false),
            ("https://minio.storage.svc/a", "fd00:ec2::23", false),
            ("https://minio.storage.svc/a", "168.63.129.16", false),
            ("https://other.storage.svc/a", "172.20.0.9", false),
            ("https://data.corp.example/a", "192.168.0.4", true),
            ("https://notcorp.example/a", "192.168.0.4", false),
            ("https://example.com/a", "10.1.0.9", true),
        ] {
            let checked = guard.check(web(text), &addresses(&[resolved]));
            assert_eq!(checked.is_ok(), fine, "{text} {resolved}: {checked:?}");
        }
        for text in [
            "10.0.0.0/33",
            "fd00::/129",
            "10.0.0/8",
            "a b",
            "",
            "..",
            "UPPER.example",
            "a/8",
        ] {
            assert!(text.parse::<Allowed>().is_err(), "{text}");
        }
        assert!(
            "0.0.0.0/0"
                .parse::<Allowed>()
                .unwrap()
                .has_address([127, 0, 0, 1].into())
        );
        assert!(
            "::/0"
                .parse::<Allowed>()
                .unwrap()
                .has_address(Ipv6Addr::LOCALHOST.into())
        );
    }

    #[test]
    fn redirects_are_checked_again_and_counted() {
        let guard = Guard::default();
        let public = addresses(&["8.8.8.8"]);
        let mut at = guard.check(web("https://example.com/a"), &public).unwrap();
        for (to, resolved) in [
            ("https://169.254.169.254/latest/meta-data", "8.8.8.8"),
            ("https://localhost/a", "8.8.8.8"),
            ("https://example.org/a", "10.0.0.1"),
        ] {
            let refused = guard.check_redirect(&at, web(to), &addresses(&[resolved]));
            assert!(refused.is_err(), "{to}");
        }
        for _ in 0..MAXIMUM_REDIRECTS {
            at = guard
                .check_redirect(&at, web("https://example.org/a"), &public)
                .unwrap();
        }
        let next = guard.check_redirect(&at, web("https://example.org/a"), &public);
        assert_eq!(next, Err(Refused::Redirects));
    }

    proptest! {
        #[test]
        fn an_address_within_another_one_is_never_more_public(bits in any::<u32>()) {
            let inner = Ipv4Addr::from(bits);
            let mapped = IpAddr::V6(inner.to_ipv6_mapped());
            prop_assert_eq!(reach(mapped), reach(IpAddr::V4(inner)));
        }

        #[test]
        fn no_entry_makes_it_panic(text in ".{0,24}", bits in any::<u128>()) {
            if let Ok(allowed) = text.parse::<Allowed>() {
                allowed.has_address(Ipv6Addr::from(bits).into());
            }
        }
    }
}
