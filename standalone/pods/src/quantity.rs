//! Kubernetes quantities (`500m`, `1.5Gi`, `2e3`) as whole numbers of billionths.

pub(crate) use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// One, in billionths.
pub(crate) const NANO: i128 = 1_000_000_000;

/// `text` in billionths, `None` if it is not a quantity.
pub(crate) fn nano(text: &str) -> Option<i128> {
    let text = text.trim();
    let digits = text.find(|c: char| !(c.is_ascii_digit() || "+-.".contains(c))).unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let (numerator, denominator): (i128, i128) = match suffix {
        "n" => (1, NANO),
        "u" => (1, 1_000_000),
        "m" => (1, 1000),
        "" => (1, 1),
        "k" => (1000, 1),
        "M" => (1_000_000, 1),
        "G" => (NANO, 1),
        "T" => (NANO * 1000, 1),
        "P" => (NANO * 1_000_000, 1),
        "E" => (NANO * NANO, 1),
        "Ki" => (1 << 10, 1),
        "Mi" => (1 << 20, 1),
        "Gi" => (1 << 30, 1),
        "Ti" => (1 << 40, 1),
        "Pi" => (1 << 50, 1),
        "Ei" => (1 << 60, 1),
        exponent => {
            let exponent: i32 = exponent.strip_prefix(['e', 'E'])?.parse().ok().filter(|e: &i32| e.abs() <= 18)?;
            let power = 10i128.pow(exponent.unsigned_abs());
            if exponent < 0 { (1, power) } else { (power, 1) }
        }
    };
    let negative = number.starts_with('-');
    let number = number.trim_start_matches(['+', '-']);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let fraction: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    let fraction: i128 = fraction.parse().ok()?;
    let value = whole.checked_mul(NANO)?.checked_add(fraction)?.checked_mul(numerator)? / denominator;
    Some(if negative { -value } else { value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_of_every_form() {
        assert_eq!(nano("250m"), Some(NANO / 4));
        assert_eq!(nano("1.5Gi"), Some(NANO * 3 * (1 << 29)));
        assert_eq!(nano("2e3"), Some(NANO * 2000));
        assert_eq!(nano("-1"), Some(-NANO));
        assert_eq!(nano("1Q"), None);
        assert_eq!(nano(""), None);
    }
}
