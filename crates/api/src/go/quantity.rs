//! `resource.Quantity`: the accepted forms, the error texts, and values that can be compared.

/// A parsed quantity, in billionths. Compared by value: `1000m` equals `1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quantity(i128);

const FORMAT: &str = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
const SUFFIX: &str = "unable to parse quantity's suffix";
const NUMERIC: &str = "unable to parse numeric part of quantity";
const UNIT: i128 = 1_000_000_000;

// === impl Quantity ===

impl Quantity {
    pub fn is_negative(self) -> bool {
        self.0 < 0
    }

    pub fn nanos(self) -> i128 {
        self.0
    }

    pub fn as_f64(self) -> f64 {
        self.0 as f64 / UNIT as f64
    }
}

pub fn parse_quantity(text: &str) -> Result<Quantity, &'static str> {
    if text.is_empty() {
        return Err(FORMAT);
    }
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(end);
    if number.is_empty() || number == "." || number.matches('.').count() > 1 {
        return Err(FORMAT);
    }
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let (base, exponent) = scale(suffix)?;

    // digits x base^exponent, kept exact to a billionth and rounded up beyond.
    let digits = format!("{whole}{fraction}");
    let digits = digits.trim_start_matches('0');
    let mut value: i128 = if digits.is_empty() { 0 } else { digits.parse().map_err(|_| NUMERIC)? };
    let mut decimals = i32::try_from(fraction.len()).map_err(|_| NUMERIC)? - 9;
    match base {
        2 => value = value.checked_shl(exponent.unsigned_abs()).ok_or(NUMERIC)?,
        _ => decimals -= exponent,
    }
    let power = |n: u32| 10_i128.checked_pow(n);
    value = if decimals <= 0 {
        match power(decimals.unsigned_abs()) {
            Some(p) => value.saturating_mul(p),
            None if value == 0 => 0,
            None => i128::MAX,
        }
    } else {
        match power(decimals.unsigned_abs()) {
            Some(p) => value / p + i128::from(value % p != 0),
            None => i128::from(value != 0),
        }
    };
    Ok(Quantity(if text.starts_with('-') { -value } else { value }))
}

fn scale(suffix: &str) -> Result<(i32, i32), &'static str> {
    Ok(match suffix {
        "" => (10, 0),
        "n" => (10, -9),
        "u" => (10, -6),
        "m" => (10, -3),
        "k" => (10, 3),
        "M" => (10, 6),
        "G" => (10, 9),
        "T" => (10, 12),
        "P" => (10, 15),
        "E" => (10, 18),
        "Ki" => (2, 10),
        "Mi" => (2, 20),
        "Gi" => (2, 30),
        "Ti" => (2, 40),
        "Pi" => (2, 50),
        "Ei" => (2, 60),
        _ => match suffix.strip_prefix(['e', 'E']).map(str::parse::<i32>) {
            Some(Ok(exponent)) if suffix.len() > 1 => (10, exponent),
            _ if suffix.chars().all(|c| "eEinumkKMGTP+-0123456789".contains(c)) => return Err(SUFFIX),
            _ => return Err(FORMAT),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_compare_across_suffixes() {
        let q = |t| parse_quantity(t).unwrap();
        assert_eq!(q("1000m"), q("1"));
        assert_eq!(q("1Ki"), q("1024"));
        assert_eq!(q("1e3"), q("1k"));
        assert_eq!(q("1.5Gi"), q("1536Mi"));
        assert!(q("-1").is_negative() && !q("0").is_negative());
        assert!(q("0.1n") > q("0"));
    }

    #[test]
    fn bad_forms_have_upstream_texts() {
        assert_eq!(parse_quantity("abc"), Err(FORMAT));
        assert_eq!(parse_quantity(""), Err(FORMAT));
        assert_eq!(parse_quantity("1Xi"), Err(FORMAT));
        assert_eq!(parse_quantity("1mm"), Err(SUFFIX));
    }
}
