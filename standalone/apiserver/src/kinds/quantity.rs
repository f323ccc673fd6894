//! Resource quantities in their canonical spelling, as the API answers them: `1000m` is `1`, `0.5` is `500m`, `1024Mi` is `1Gi`.

use serde_json::Value;

const BINARY: [(&str, u32); 6] = [("Ei", 60), ("Pi", 50), ("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)];
const DECIMAL: [(&str, i32); 10] =
    [("E", 18), ("P", 15), ("T", 12), ("G", 9), ("M", 6), ("k", 3), ("", 0), ("m", -3), ("u", -6), ("n", -9)];

/// A quantity in units of 10^-9, and whether it is written with a power of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Quantity {
    nanos: i128,
    binary: bool,
}

// === impl Quantity ===

impl Quantity {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let end = text.find(|c: char| !matches!(c, '0'..='9' | '.' | '+' | '-')).unwrap_or(text.len());
        let (number, suffix) = text.split_at(end);
        let binary = BINARY.iter().find(|(name, _)| *name == suffix);
        let exponent = match (binary, DECIMAL.iter().find(|(name, _)| *name == suffix)) {
            (Some(_), _) => 0,
            (None, Some((_, exponent))) => *exponent,
            (None, None) => suffix.strip_prefix(['e', 'E'])?.parse().ok()?,
        };
        let (negative, digits) = match number.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, number.strip_prefix('+').unwrap_or(number)),
        };
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let mantissa: i128 = format!("{whole}{fraction}").parse().ok()?;
        let power = 9_i32.checked_add(exponent)?.checked_sub(i32::try_from(fraction.len()).ok()?)?;
        let scaled = match binary {
            Some((_, shift)) => mantissa.checked_mul(1 << shift)?,
            None => mantissa,
        };
        let unit = 10_i128.checked_pow(power.unsigned_abs())?;
        // What is finer than a nano is rounded up.
        let nanos = if power >= 0 { scaled.checked_mul(unit)? } else { scaled / unit + i128::from(scaled % unit != 0) };
        Some(Self { nanos: if negative { -nanos } else { nanos }, binary: binary.is_some() })
    }

    pub(super) fn is_negative(self) -> bool {
        self.nanos < 0
    }

    pub(super) fn is_zero(self) -> bool {
        self.nanos == 0
    }

    /// Whether it is the same amount, however written.
    pub(super) fn equals(self, other: Self) -> bool {
        self.nanos == other.nanos
    }

    pub(super) fn canonical(self) -> String {
        const ONE: i128 = 1_000_000_000;
        if self.nanos == 0 {
            return "0".to_owned();
        }
        if self.binary && self.nanos % ONE == 0 {
            let units = self.nanos / ONE;
            let fit = BINARY.iter().find(|(_, shift)| units % (1 << shift) == 0);
            return fit.map_or_else(|| units.to_string(), |(name, shift)| format!("{}{name}", units >> shift));
        }
        for (name, exponent) in DECIMAL {
            let unit = 10_i128.pow((exponent + 9).unsigned_abs());
            if self.nanos % unit == 0 {
                return format!("{}{name}", self.nanos / unit);
            }
        }
        self.nanos.to_string()
    }
}

/// Rewrites the values of a resource list; what does not parse is left for validation.
pub(super) fn canonicalise(list: Option<&mut Value>) {
    for value in list.and_then(Value::as_object_mut).into_iter().flat_map(|map| map.values_mut()) {
        let text = match &*value {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            _ => continue,
        };
        if let Some(quantity) = Quantity::parse(&text) {
            *value = quantity.canonical().into();
        }
    }
}

/// Numbers where quantities are expected, written as strings: the API takes both.
pub(super) fn stringify(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match key.as_str() {
                    "limits" | "requests" | "capacity" | "allocatable" | "hard" | "used" | "overhead" => {
                        for quantity in value.as_object_mut().into_iter().flat_map(|m| m.values_mut()) {
                            if quantity.is_number() {
                                *quantity = quantity.to_string().into();
                            }
                        }
                    }
                    "sizeLimit" | "divisor" | "averageValue" if value.is_number() => *value = value.to_string().into(),
                    _ => stringify(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(stringify),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_spelling() {
        let cases = [
            ("1000m", "1"),
            ("0.5", "500m"),
            ("25m", "25m"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("100M", "100M"),
            ("1000", "1k"),
            ("1e3", "1k"),
            ("0", "0"),
            ("-2", "-2"),
            ("128Mi", "128Mi"),
        ];
        for (given, canonical) in cases {
            assert_eq!(Quantity::parse(given).expect(given).canonical(), canonical, "{given}");
        }
        assert!(Quantity::parse("abc").is_none());
        assert!(Quantity::parse("").is_none());
        assert!(Quantity::parse("1Gi") > Quantity::parse("1000M"));
    }
}
