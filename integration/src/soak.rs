//! The soak switch: full counts, or a tenth of them.

/// Environment variable that asks for full counts when it is `1`.
pub const VARIABLE: &str = "FLOWTILLA_SOAK";

/// Whether full counts are asked for.
#[must_use]
pub fn is_on() -> bool {
    std::env::var(VARIABLE).is_ok_and(|value| value == "1")
}

/// `full` with the soak switch, a tenth of it otherwise, at least 1.
#[must_use]
pub fn count(full: usize) -> usize {
    if is_on() { full } else { (full / 10).max(1) }
}
