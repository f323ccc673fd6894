//! `strconv`: numbers, booleans and quoting.

pub fn parse_i64(text: &str) -> Result<i64, String> {
    parse_int(text, i64::MIN.into(), i64::MAX.into(), "ParseInt").map(|v| v as i64)
}

pub fn parse_i32(text: &str) -> Result<i32, String> {
    parse_int(text, i32::MIN.into(), i32::MAX.into(), "ParseInt").map(|v| v as i32)
}

pub fn parse_u64(text: &str) -> Result<u64, String> {
    unsigned(text, u64::MAX.into()).map(|v| v as u64)
}

pub fn parse_u32(text: &str) -> Result<u32, String> {
    unsigned(text, u32::MAX.into()).map(|v| v as u32)
}

fn unsigned(text: &str, max: i128) -> Result<i128, String> {
    if text.starts_with(['+', '-']) {
        return Err(syntax("ParseUint", text));
    }
    parse_int(text, 0, max, "ParseUint")
}

fn parse_int(text: &str, min: i128, max: i128, function: &str) -> Result<i128, String> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(syntax(function, text));
    }
    match text.strip_prefix('+').unwrap_or(text).parse::<i128>() {
        Ok(value) if (min..=max).contains(&value) => Ok(value),
        _ => Err(range(function, text)),
    }
}

pub fn parse_f64(text: &str) -> Result<f64, String> {
    let invalid = || syntax("ParseFloat", text);
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let negative = text.starts_with('-');
    let sign = |v: f64| if negative { -v } else { v };
    match unsigned.to_ascii_lowercase().as_str() {
        "inf" | "infinity" => return Ok(sign(f64::INFINITY)),
        "nan" if unsigned.len() == text.len() => return Ok(f64::NAN),
        _ => {}
    }
    if let Some(hex) = unsigned.strip_prefix("0x").or_else(|| unsigned.strip_prefix("0X")) {
        return hex_float(hex).map(sign).ok_or_else(invalid);
    }
    let plain = unsigned.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'));
    if !plain || unsigned.is_empty() || unsigned.starts_with(['+', '-']) {
        return Err(invalid());
    }
    let value: f64 = unsigned.parse().map_err(|_| invalid())?;
    if value.is_infinite() {
        return Err(range("ParseFloat", text));
    }
    Ok(sign(value))
}

/// `1.8p3`: hexadecimal mantissa, binary exponent (required).
fn hex_float(text: &str) -> Option<f64> {
    let (mantissa, exponent) = text.split_once(['p', 'P'])?;
    let mut exponent: i32 = exponent.parse().ok()?;
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let mut value = 0.0_f64;
    for digit in whole.chars().chain(fraction.chars()) {
        value = value * 16.0 + f64::from(digit.to_digit(16)?);
    }
    exponent = exponent.saturating_sub(4 * i32::try_from(fraction.len()).ok()?);
    Some(value * 2.0_f64.powi(exponent))
}

pub fn parse_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(syntax("ParseBool", text)),
    }
}

/// `%v` of a float: shortest form, exponent below 1e-4 and from 1e21.
pub fn format_f64(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let magnitude = value.abs();
    if magnitude != 0.0 && !(1e-4..1e21).contains(&magnitude) {
        let text = format!("{value:e}");
        let (mantissa, exponent) = text.split_once('e').expect("the format has an exponent");
        let (sign, digits) = match exponent.strip_prefix('-') {
            Some(digits) => ('-', digits),
            None => ('+', exponent),
        };
        return format!("{mantissa}e{sign}{digits:0>2}");
    }
    format!("{value}")
}

/// `%q`: double quotes with Go escapes.
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if (c as u32) < 0x20 || c as u32 == 0x7f => out.push_str(&format!("\\x{:02x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

fn syntax(function: &str, text: &str) -> String {
    format!("strconv.{function}: parsing {}: invalid syntax", quote(text))
}

fn range(function: &str, text: &str) -> String {
    format!("strconv.{function}: parsing {}: value out of range", quote(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers() {
        assert_eq!(parse_i64("+12"), Ok(12));
        assert_eq!(parse_i64("x"), Err("strconv.ParseInt: parsing \"x\": invalid syntax".into()));
        assert_eq!(parse_i32("3000000000"), Err("strconv.ParseInt: parsing \"3000000000\": value out of range".into()));
        assert!(parse_i64("1_000").is_err());
        assert!(parse_u32("-1").is_err());
        assert!(parse_u32("+1").is_err());
    }

    #[test]
    fn floats() {
        assert_eq!(parse_f64("1e3"), Ok(1000.0));
        assert_eq!(parse_f64("0x1p-2"), Ok(0.25));
        assert_eq!(parse_f64("-inf"), Ok(f64::NEG_INFINITY));
        assert!(parse_f64("1.5x").is_err() && parse_f64("").is_err() && parse_f64("--1").is_err());
        for (value, text) in [(0.1, "0.1"), (100.0, "100"), (1e21, "1e+21"), (0.00001, "1e-05"), (-2.5, "-2.5")] {
            assert_eq!(format_f64(value), text);
        }
    }

    #[test]
    fn quoting() {
        assert_eq!(quote("a\"b\n"), r#""a\"b\n""#);
    }
}
