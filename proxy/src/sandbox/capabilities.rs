//! What the stages of a sandbox may do, and the command may not.

use std::io;

use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs,
};

/// What the second stage needs: to mount, and to give up what it can.
const FOR_MOUNTS: [CapabilitySet; 2] = [CapabilitySet::SYS_ADMIN, CapabilitySet::SETPCAP];

/// Lets the next program keep what mounting needs, although the user is an ordinary one.
///
/// # Errors
/// Outside of a user namespace of one's own.
pub(super) fn keep_for_mounts() -> io::Result<()> {
    let sets = capabilities(None)?;
    let wanted = FOR_MOUNTS.into_iter().fold(CapabilitySet::empty(), |all, one| all | one);
    set_capabilities(None, CapabilitySets { inheritable: sets.inheritable | wanted, ..sets })?;
    for one in FOR_MOUNTS {
        configure_capability_in_ambient_set(one, true)?;
    }
    Ok(())
}

/// Gives up every capability for good: in no set, not by running a program that has some, not as user 0.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn give_up_all() -> io::Result<()> {
    set_no_new_privs(true)?;
    clear_ambient_capability_set()?;
    for bit in 0..u64::BITS {
        match remove_capability_from_bounding_set(CapabilitySet::from_bits_retain(1 << bit)) {
            // This kernel knows no more of them.
            Err(rustix::io::Errno::INVAL) => break,
            result => result?,
        }
    }
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    Ok(())
}
