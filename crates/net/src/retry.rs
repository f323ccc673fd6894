//! What becomes of a request whose connection broke before an answer came.
//!
//! A connection that was kept may be closed by the other side at the moment it is used again. A request of which not a
//! byte was written has been seen by nobody. One that was written may have been, and goes out again only if that does no
//! harm, and only if it is likely that the connection was closed before: a new one was not.

/// Where a request goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// To the same destination, on another connection.
    Here,
    /// To another destination, if there is one: nobody has seen it here.
    Elsewhere,
    /// Nowhere, since it may have been seen.
    Nowhere,
}

/// `kept`: the connection had been used before; `written`: some of the request has left; `repeatable`: it may be
/// answered twice.
pub fn after_break(kept: bool, written: bool, repeatable: bool) -> Retry {
    match (kept, written) {
        (true, false) => Retry::Here,
        (false, false) => Retry::Elsewhere,
        (true, true) if repeatable => Retry::Here,
        _ => Retry::Nowhere,
    }
}
