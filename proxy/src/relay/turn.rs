//! How long a flow that carries much may keep a core before others have their turn.
//!
//! What it buys: beside one pull, with turns of four megabytes, a tunnel took 16 ms to open and one in a hundred
//! 190 ms; with turns of a quarter of one, eight pulls cost twice as much (bench/README.md). So turns are short while
//! anybody else has something to do on this thread, and grow while nobody has.

use std::cell::Cell;

/// Bytes of a turn while others have something to do: a tenth of a millisecond.
const SHORT: usize = 256 * 1024;
/// Bytes of a turn while nobody has.
const LONG: usize = 4 << 20;

thread_local! {
    /// How often somebody had something small to do on this thread.
    static LIGHT: Cell<u64> = const { Cell::new(0) };
    /// That, when the last turn was over.
    static SEEN: Cell<u64> = const { Cell::new(0) };
    static TURN: Cell<usize> = const { Cell::new(SHORT) };
}

/// Somebody has something to do on this thread that is over soon.
pub fn light_work() {
    LIGHT.set(LIGHT.get().wrapping_add(1));
}

/// Whether a flow that has moved so many bytes is to let others have their turn.
pub(super) fn is_over(moved: usize) -> bool {
    if moved < TURN.get() {
        return false;
    }
    let light = LIGHT.get();
    let alone = SEEN.replace(light) == light;
    TURN.set(if alone { LONG.min(TURN.get() * 2) } else { SHORT });
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_grow_while_nobody_else_has_work_and_shrink_when_somebody_has() {
        assert!(!is_over(SHORT - 1));
        let mut turn = SHORT;
        while turn < LONG {
            assert!(is_over(turn));
            turn *= 2;
            assert!(!is_over(turn - 1), "it has doubled");
        }
        assert!(is_over(LONG) && !is_over(LONG - 1), "and doubles no more");
        light_work();
        assert!(is_over(LONG));
        assert!(is_over(SHORT), "it is short again");
    }
}
