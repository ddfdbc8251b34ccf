//! Names that the gate answers by itself, whatever the policy says: those by which software asks whether it
//! may go round the local resolver, and those that are never to leave a host.

use outgate_rules::DomainName;

use crate::reply::Reply;

/// The answer to any question about a special name.
///
/// A server asks this before it decides, so that such a name is negative whatever a denial looks like.
#[must_use]
pub fn answer(name: &DomainName) -> Option<Reply> {
    match name.as_str() {
        // Firefox: "do not turn DNS over HTTPS on by yourself".
        "use-application-dns.net"
        // Apple's Private Relay: "not on this network" (Apple, "Prepare your network for iCloud Private Relay").
        | "mask.icloud.com" | "mask-h2.icloud.com" | "mask-api.icloud.com"
        // RFC 6761 and RFC 7686: never asked of a resolver.
        | "localhost" | "invalid" | "onion" => Some(Reply::no_such_name()),
        // Discovery of designated resolvers: there is none (RFC 9462 §6.4, served locally).
        "resolver.arpa" => Some(Reply::no_data()),
        name if name.ends_with(".resolver.arpa") => Some(Reply::no_data()),
        name if [".localhost", ".invalid", ".onion"].iter().any(|end| name.ends_with(end)) => {
            Some(Reply::no_such_name())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reply::Rcode;

    #[test]
    fn canaries_and_local_names_are_negative_and_no_others() {
        let rcode = |name: &str| answer(&DomainName::parse(name).unwrap()).map(|reply| reply.rcode);
        for name in
            ["use-application-dns.net", "mask.icloud.com", "mask-h2.icloud.com", "localhost", "a.onion"]
        {
            assert_eq!(rcode(name), Some(Rcode::NxDomain), "{name}");
        }
        for name in ["_dns.resolver.arpa", "resolver.arpa"] {
            assert_eq!(rcode(name), Some(Rcode::NoError), "{name}");
        }
        for name in
            ["application-dns.net", "a.mask.icloud.com", "xonion", "notresolver.arpa", "localhost.example"]
        {
            assert_eq!(rcode(name), None, "{name}");
        }
    }
}
