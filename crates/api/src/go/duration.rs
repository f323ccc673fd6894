//! `time.Duration`: parsing (`1h2m3.5s`) and printing.

use super::number::quote;

/// Nanoseconds, signed, as Go keeps a duration.
pub type Nanos = i64;

const MICRO: i64 = 1_000;
const MILLI: i64 = 1_000_000;
const SECOND: i64 = 1_000_000_000;

pub fn parse_duration(text: &str) -> Result<Nanos, String> {
    let invalid = || format!("time: invalid duration {}", quote(text));
    let (negative, mut rest) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let whole = &rest[..digits];
        rest = &rest[digits..];
        let mut fraction = "";
        if let Some(after) = rest.strip_prefix('.') {
            let digits = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
            fraction = &after[..digits];
            rest = &after[digits..];
        }
        if whole.is_empty() && fraction.is_empty() {
            return Err(invalid());
        }
        let end = rest.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = &rest[..end];
        rest = &rest[end..];
        let scale: i128 = match unit {
            "" => return Err(format!("time: missing unit in duration {}", quote(text))),
            "ns" => 1,
            "us" | "µs" | "μs" => MICRO.into(),
            "ms" => MILLI.into(),
            "s" => SECOND.into(),
            "m" => i128::from(SECOND) * 60,
            "h" => i128::from(SECOND) * 3600,
            _ => return Err(format!("time: unknown unit {} in duration {}", quote(unit), quote(text))),
        };
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| invalid())? };
        total = whole.checked_mul(scale).and_then(|v| total.checked_add(v)).ok_or_else(invalid)?;
        // Beyond 18 digits a fraction no longer matters at this resolution.
        let fraction = &fraction[..fraction.len().min(18)];
        if !fraction.is_empty() {
            let power = u32::try_from(fraction.len()).expect("at most 18 digits");
            total += fraction.parse::<i128>().map_err(|_| invalid())? * scale / 10_i128.pow(power);
        }
        if total > i128::from(i64::MAX) + i128::from(negative) {
            return Err(invalid());
        }
    }
    i64::try_from(if negative { -total } else { total }).map_err(|_| invalid())
}

/// `1h0m0s`, `6s`, `1.5s`, `100ms`, `0s`.
pub fn format_duration(nanos: Nanos) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let nanos = i128::from(nanos).abs();
    let second = i128::from(SECOND);
    if nanos == 0 {
        return "0s".to_owned();
    }
    if nanos < second {
        let (unit, scale) = match nanos {
            n if n < MICRO.into() => ("ns", 1),
            n if n < MILLI.into() => ("µs", MICRO.into()),
            _ => ("ms", i128::from(MILLI)),
        };
        return format!("{sign}{}{unit}", decimal(nanos, scale));
    }
    let seconds = nanos / second;
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    let rest = decimal(nanos % (60 * second), second);
    match (hours, minutes) {
        (0, 0) => format!("{sign}{rest}s"),
        (0, m) => format!("{sign}{m}m{rest}s"),
        (h, m) => format!("{sign}{h}h{m}m{rest}s"),
    }
}

fn decimal(value: i128, scale: i128) -> String {
    let (whole, rest) = (value / scale, value % scale);
    if rest == 0 {
        return whole.to_string();
    }
    let width = scale.to_string().len() - 1;
    let digits = format!("{rest:0width$}");
    format!("{whole}.{}", digits.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_go_parses() {
        for (text, nanos) in [
            ("0", 0),
            ("300ms", 300 * MILLI),
            ("-1.5h", -5400 * SECOND),
            ("2h45m", 9900 * SECOND),
            (".5s", 500 * MILLI),
            ("1us", MICRO),
        ] {
            assert_eq!(parse_duration(text), Ok(nanos), "{text}");
        }
        assert_eq!(parse_duration("5"), Err("time: missing unit in duration \"5\"".into()));
        assert_eq!(parse_duration("5q"), Err("time: unknown unit \"q\" in duration \"5q\"".into()));
        assert_eq!(parse_duration("x"), Err("time: invalid duration \"x\"".into()));
        assert_eq!(parse_duration(""), Err("time: invalid duration \"\"".into()));
        assert!(parse_duration("9999999h").is_err());
    }

    #[test]
    fn prints_what_go_prints() {
        for (nanos, text) in [
            (0, "0s"),
            (6 * SECOND, "6s"),
            (3600 * SECOND, "1h0m0s"),
            (90 * SECOND, "1m30s"),
            (1500 * MILLI, "1.5s"),
            (-MILLI, "-1ms"),
            (1500, "1.5µs"),
            (7, "7ns"),
        ] {
            assert_eq!(format_duration(nanos), text);
        }
    }
}
