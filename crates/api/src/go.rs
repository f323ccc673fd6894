//! Values as the Go standard library reads and prints them.
//!
//! Users meet these texts in ConfigMap errors and admission messages, and annotations are written in these dialects, so
//! both the accepted forms and the error texts are part of the contract.

mod duration;
mod flags;
mod number;
mod quantity;

pub use duration::{Nanos, format_duration, parse_duration};
pub use flags::{LOGGING, flags};
pub use number::{format_f64, parse_bool, parse_f64, parse_i32, parse_i64, parse_u32, parse_u64, quote};
pub use quantity::{Quantity, parse_quantity};

/// A list as `%v` prints it: `[a b]`.
pub fn list<S: AsRef<str>>(items: &[S]) -> String {
    let items: Vec<&str> = items.iter().map(AsRef::as_ref).collect();
    format!("[{}]", items.join(" "))
}
