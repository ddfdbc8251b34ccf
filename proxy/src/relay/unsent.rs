//! How much a socket may hold unsent, where its receiver is slower than we are.
//!
//! What it buys: beside one pull, stretches of more than half a millisecond between two looks at who is ready take 0.2 %
//! of a thread's time, and took 6.8 (bench/README.md). A receiver that has been slow opens its window, and the kernel
//! sends all that it holds, some megabytes, in the midst of one system call of ours: that takes a millisecond, and nobody
//! else has a turn meanwhile. Bytes on their way do not count (`TCP_NOTSENT_LOWAT`, tcp(7)), so that a long fat pipe is
//! as full as before.
//!
//! Only while others have something to do: eight pulls alone would cost 30 % more, each waiting for room so often
//! that its bytes are gone from the caches.

use socket2::SockRef;
use tokio::net::TcpStream;

use super::turn;

/// Bytes unsent above which nothing more is taken: those of a step.
const BOUND: u32 = 64 * 1024;
/// As the system has it, which is without a bound.
const SYSTEM: u32 = 0;

/// Sets the bound of a socket that takes no more now, by what others do. It holds until this is asked again.
pub(super) fn bound(full: &TcpStream) {
    let bytes = if turn::in_company() { BOUND } else { SYSTEM };
    // Without it bytes move all the same.
    let _ = SockRef::from(full).set_tcp_notsent_lowat(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::readiness::tests::pair;
    use crate::relay::turn::{Turn, light_work};

    #[tokio::test]
    async fn a_full_socket_has_a_bound_while_others_have_something_to_do_and_none_when_nobody_has() {
        let (full, _receiver) = pair().await;
        let unsent = || SockRef::from(&full).tcp_notsent_lowat().unwrap();
        bound(&full);
        assert_eq!(unsent(), SYSTEM, "nobody has had any");
        light_work();
        bound(&full);
        assert_eq!(unsent(), BOUND);
        Turn::default().moved(turn::QUIET - 1).await;
        bound(&full);
        assert_eq!(unsent(), BOUND);
        Turn::default().moved(1).await;
        bound(&full);
        assert_eq!(unsent(), SYSTEM, "nobody has had any for long");
    }
}
