//! Redirection by the `nft` program, for a gate that does not make the kernel's rules itself.

use super::{Lab, Place};

/// The rules: clients' TCP to the transparent listeners, their DNS to ours, nothing else forwarded.
const TABLE: &str = "
table inet redirection {
    chain prerouting {
        type filter hook prerouting priority mangle
        policy accept
        iifname != { training, scoring } return
        fib daddr type local return
        meta l4proto tcp socket transparent 1 meta mark set 1 accept
        tcp dport 53 return
        tcp dport 443 tproxy to :8443 meta mark set 1 accept
        tcp dport 80 tproxy to :8080 meta mark set 1 accept
        meta l4proto tcp tproxy to :8081 meta mark set 1 accept
    }
    chain names {
        type nat hook prerouting priority dstnat
        iifname { training, scoring } meta l4proto { tcp, udp } th dport 53 redirect to :53
    }
    chain forward {
        type filter hook forward priority filter
        policy drop
        iifname { training, scoring } reject with icmpx admin-prohibited
    }
}
";

impl Lab {
    /// Redirects what the spokes send to the transparent listeners of a gate in the hub.
    pub fn redirect(&self) {
        let hub = self.machine(Place::Hub);
        hub.nft(TABLE);
        for family in ["-4", "-6"] {
            hub.shell(&format!(
                "ip {family} rule add fwmark 1 lookup 100 && ip {family} route add local default dev lo table 100"
            ));
        }
    }
}
