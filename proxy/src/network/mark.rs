//! What our rules write on flows (`ct mark`), so that a flow's later packets and its end can be told from others'.

use crate::kernel::table::Mark;

/// A flow that the kernel passes by a rule or by the mode, and has told of.
pub const PASSED: u32 = 0x4f47_0001;
/// A flow that the kernel passes because its client was told the address for a name. It goes on by this mark when the
/// answer has run out.
pub const BY_NAME: u32 = 0x4f47_0003;
/// A TCP flow that is the gate's.
pub const INTERCEPTED: u32 = 0x4f47_0002;
/// [`PASSED`] and [`BY_NAME`], by the bit that they have in common.
pub const FORWARDED: Mark = Mark { value: 0x4f47_0001, mask: 0xffff_0001 };

/// Whether a flow with this mark began under our rules.
#[must_use]
pub fn is_ours(mark: u32) -> bool {
    matches!(mark, PASSED | BY_NAME | INTERCEPTED)
}

/// Whether a flow with this mark passed by a name; none where the kernel did not pass it by our rules.
pub(super) fn passed_by_name(mark: u32) -> Option<bool> {
    match mark {
        PASSED => Some(false),
        BY_NAME => Some(true),
        _ => None,
    }
}
