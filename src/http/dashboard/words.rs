//! Numbers, durations and instants for people.

/// With a thin group every three digits.
pub(super) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count with its noun.
pub(super) fn counted(number: u64, one: &str, many: &str) -> String {
    format!("{} {}", count(number), if number == 1 { one } else { many })
}

/// A rate in records a second, to three digits or so.
pub(super) fn rate(rate: f64) -> String {
    if rate >= 10.0 || rate == 0.0 { count(whole(rate)) } else { format!("{rate:.1}") }
}

fn whole(number: f64) -> u64 {
    // A rate is neither negative nor beyond what a count can be; a cast saturates.
    number.round() as u64
}

/// A duration in its two largest units.
pub(super) fn duration(seconds: f64) -> String {
    let total = whole(seconds);
    match total {
        _ if seconds < 9.95 => format!("{seconds:.1} s"),
        0..60 => format!("{total} s"),
        60..3_600 => format!("{} min {} s", total / 60, total % 60),
        3_600..86_400 => format!("{} h {} min", total / 3_600, total % 3_600 / 60),
        _ => format!("{} d {} h", total / 86_400, total % 86_400 / 3_600),
    }
}

/// The beginning of a kid: enough to tell it from others.
pub(super) fn short(kid: &str) -> &str {
    kid.get(..10).unwrap_or(kid)
}

/// An instant of RFC 3339 without its fraction: `2026-01-31 12:00:00`.
pub(super) fn instant(at: &str) -> String {
    let text: String = at.chars().take(19).collect();
    text.replace('T', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_durations_read_well() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(counted(1, "key", "keys"), "1 key");
        assert_eq!(rate(0.0), "0");
        assert_eq!(rate(3.25), "3.2");
        assert_eq!(rate(45_678.4), "45,678");
        for (seconds, text) in [
            (0.04, "0.0 s"),
            (9.94, "9.9 s"),
            (9.96, "10 s"),
            (59.4, "59 s"),
            (250.0, "4 min 10 s"),
            (7_260.0, "2 h 1 min"),
            (180_000.0, "2 d 2 h"),
        ] {
            assert_eq!(duration(seconds), text);
        }
        assert_eq!(short("abcdefghijklm"), "abcdefghij");
        assert_eq!(instant("2026-01-31T12:00:00.123Z"), "2026-01-31 12:00:00");
    }
}
