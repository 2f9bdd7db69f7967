//! Which addresses may be reached for URLs that come from callers.
//!
//! Without these rules a caller could make the gateway send requests to services that only its own
//! network can reach (server-side request forgery).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use url::Host;

/// IPv4 networks that are not public. Source: IANA's IPv4 Special-Purpose Address Registry, and for
/// multicast and the reserved block RFC 1112.
const RESERVED_V4: [Ipv4Net; 16] = [
    v4([0, 0, 0, 0], 8),        // this network
    v4([10, 0, 0, 0], 8),       // private
    v4([100, 64, 0, 0], 10),    // shared by the customers of a provider; also Alibaba's metadata
    v4([127, 0, 0, 0], 8),      // this machine
    v4([169, 254, 0, 0], 16),   // link-local; also the metadata of most clouds
    v4([172, 16, 0, 0], 12),    // private
    v4([192, 0, 0, 0], 24),     // protocol assignments; also Oracle's metadata
    v4([192, 0, 2, 0], 24),     // documentation
    v4([192, 88, 99, 0], 24),   // 6to4 relays
    v4([192, 168, 0, 0], 16),   // private
    v4([198, 18, 0, 0], 15),    // benchmarks
    v4([198, 51, 100, 0], 24),  // documentation
    v4([203, 0, 113, 0], 24),   // documentation
    v4([224, 0, 0, 0], 4),      // multicast
    v4([240, 0, 0, 0], 4),      // reserved, and the broadcast address
    v4([168, 63, 129, 16], 32), // the services of Azure's virtual machines, on a public address
];

/// The IPv6 addresses that were given out for public use. Source: IANA's IPv6 Global Unicast Address
/// Assignments.
const GLOBAL_V6: Ipv6Net = v6([0x2000, 0, 0, 0, 0, 0, 0, 0], 3);

/// Networks in [`GLOBAL_V6`] that are not public, or lead to an IPv4 address that may not be. Source:
/// IANA's IPv6 Special-Purpose Address Registry.
const RESERVED_V6: [Ipv6Net; 4] = [
    v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23), // protocol assignments; also Teredo
    v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32), // documentation
    v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16), // 6to4
    v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20), // documentation
];

/// The addresses that a translator maps to IPv4, in networks without IPv4. Source: RFC 6052.
const NAT64: Ipv6Net = v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96);

const fn v4([a, b, c, d]: [u8; 4], length: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length)
}

const fn v6([a, b, c, d, e, f, g, h]: [u16; 8], length: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, d, e, f, g, h), length)
}

/// Whether an address is one of the public internet. Not those that stand for another address, except
/// for a translator's to a public IPv4 address.
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !RESERVED_V4.iter().any(|network| network.contains(&address)),
        IpAddr::V6(address) if NAT64.contains(&address) => {
            let [.., a, b, c, d] = address.octets();
            is_public(Ipv4Addr::new(a, b, c, d).into())
        }
        IpAddr::V6(address) => {
            let is_reserved = RESERVED_V6.iter().any(|network| network.contains(&address));
            GLOBAL_V6.contains(&address) && !is_reserved
        }
    }
}

/// Destinations that the operator allows: they may be private, and may be reached without TLS.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowedDestinations {
    /// Host names in lower case, without a dot at the end.
    names: Vec<String>,
    networks: Vec<IpNet>,
}

/// An entry that is neither a host name nor an IP address nor a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("host names, IP addresses or networks such as 10.0.0.0/8, without ports")]
pub struct InvalidDestination;

impl AllowedDestinations {
    /// Reads host names, IP addresses and networks.
    ///
    /// # Errors
    /// [`InvalidDestination`] if an entry is none of these.
    pub fn parse<'a>(
        entries: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, InvalidDestination> {
        let mut allowed = Self::default();
        for entry in entries {
            if let Ok(network) = entry.parse::<IpNet>() {
                allowed.networks.push(network.trunc());
            } else if let Ok(address) = unbracketed(entry).parse::<IpAddr>() {
                allowed.networks.push(address.to_canonical().into());
            } else {
                allowed.names.push(host_name(entry).ok_or(InvalidDestination)?);
            }
        }
        Ok(allowed)
    }

    /// Whether this host is allowed by its name, wherever the name leads.
    pub fn has_name(&self, host: &str) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host);
        self.names.iter().any(|name| name.eq_ignore_ascii_case(host))
    }

    /// Whether this address is allowed.
    pub fn has_address(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.networks.iter().any(|network| network.contains(&address))
    }

    /// Whether an address is allowed at all, so that the name of a host alone does not tell whether it
    /// may be reached without TLS.
    pub fn has_networks(&self) -> bool {
        !self.networks.is_empty()
    }
}

/// An IPv6 address without the brackets that it has in URLs.
pub(super) fn unbracketed(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// A host name as URLs have it. `None` for odd forms of addresses, such as `0x7f.1`.
fn host_name(entry: &str) -> Option<String> {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    let entry = entry.strip_suffix('.').unwrap_or(entry);
    match Host::parse(entry) {
        Ok(Host::Domain(name)) if name.bytes().all(is_part) => Some(name),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_and_reserved_addresses_are_not_public() {
        for address in [
            "0.0.0.0",
            "0.1.2.3",
            "10.0.0.1",
            "10.255.255.255",
            "100.64.0.1",
            "100.100.100.200",
            "100.127.255.255",
            "127.0.0.1",
            "127.255.255.254",
            "168.63.129.16",
            "169.254.169.254",
            "169.254.170.2",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.0.192",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.255.255",
            "198.51.100.7",
            "203.0.113.7",
            "224.0.0.1",
            "239.255.255.255",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::10.0.0.1",
            "::8.8.8.8",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:169.254.169.254",
            "::ffff:0:10.0.0.1",
            "64:ff9b::10.0.0.1",
            "64:ff9b::127.0.0.1",
            "64:ff9b::a9fe:a9fe",
            "64:ff9b:1::8.8.8.8",
            "100::1",
            "2001::1",
            "2001:0:a00:1::1",
            "2001:2::1",
            "2001:10::1",
            "2001:20::1",
            "2001:db8::1",
            "2002:a00:1::1",
            "2002:7f00:1::",
            "3fff::1",
            "4000::1",
            "5f00::1",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!is_public(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn other_addresses_are_public() {
        for address in [
            "1.1.1.1",
            "8.8.8.8",
            "9.255.255.255",
            "11.0.0.1",
            "100.63.255.255",
            "100.128.0.1",
            "126.255.255.255",
            "128.0.0.1",
            "168.63.129.15",
            "169.253.255.255",
            "172.15.255.255",
            "172.32.0.1",
            "192.0.1.1",
            "192.167.255.255",
            "192.169.0.1",
            "198.17.255.255",
            "198.20.0.1",
            "223.255.255.255",
            "64:ff9b::8.8.8.8",
            "2001:200::1",
            "2001:4860:4860::8888",
            "2606:4700:4700::1111",
            "2a00:1450:4001::1",
        ] {
            assert!(is_public(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn names_addresses_and_networks_are_allowed() {
        let entries = ["Hooks.Internal.", "10.1.2.3/16", "::1", "[fd00::7]", "::ffff:192.168.0.9"];
        let allowed = AllowedDestinations::parse(entries).unwrap();
        for (host, expected) in [
            ("hooks.internal", true),
            ("HOOKS.internal.", true),
            ("x.hooks.internal", false),
            ("internal", false),
            ("hooks.internal.example", false),
        ] {
            assert_eq!(allowed.has_name(host), expected, "{host}");
        }
        for (address, expected) in [
            ("10.1.255.255", true),
            ("::ffff:10.1.0.1", true),
            ("10.2.0.1", false),
            ("::1", true),
            ("::2", false),
            ("fd00::7", true),
            ("192.168.0.9", true),
            ("127.0.0.1", false),
        ] {
            assert_eq!(allowed.has_address(address.parse().unwrap()), expected, "{address}");
        }
        assert!(allowed.has_networks());
        assert!(!AllowedDestinations::parse(["a.example"]).unwrap().has_networks());
    }

    #[test]
    fn an_entry_that_is_no_host_is_invalid() {
        for entry in [
            "",
            "http://a.example",
            "a.example:80",
            "10.0.0.1:80",
            "a.example/path",
            "10.0.0.0/33",
            "10.0.0/8",
            "0x7f.1",
            "127.1",
            "2130706433",
            "*",
            "*.example",
            "a b",
            "user@a.example",
            "[::1",
            "fe80::1%eth0",
        ] {
            let parsed = AllowedDestinations::parse([entry]);
            assert_eq!(parsed, Err(InvalidDestination), "{entry}");
        }
    }
}
