//! Lines out of pieces of a body, none longer than a bound.

/// Splits what comes into lines.
pub(super) struct Lines {
    most: usize,
    /// The beginning of a line whose end has not come.
    rest: Vec<u8>,
    /// The line is too long: the rest of it is passed over.
    skipping: bool,
    number: u64,
}

/// A line with its number; the first is 1.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line<'a> {
    Whole(u64, &'a [u8]),
    TooLong(u64),
}

impl Lines {
    pub(super) fn new(most: usize) -> Self {
        Lines { most, rest: Vec::new(), skipping: false, number: 1 }
    }

    /// The number of the next line.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Takes a piece, and hands each line that ends in it to `take`.
    pub(super) fn push(&mut self, mut piece: &[u8], mut take: impl FnMut(Line<'_>)) {
        while let Some(end) = piece.iter().position(|byte| *byte == b'\n') {
            let (line, behind) = piece.split_at(end);
            piece = &behind[1..];
            if self.rest.is_empty() && !self.skipping && line.len() <= self.most {
                take(Line::Whole(self.number, line));
            } else {
                self.add(line);
                self.hand_over(&mut take);
            }
            self.number += 1;
        }
        self.add(piece);
    }

    /// Hands over a last line that has no end.
    pub(super) fn finish(&mut self, mut take: impl FnMut(Line<'_>)) {
        if self.skipping || !self.rest.is_empty() {
            self.hand_over(&mut take);
            self.number += 1;
        }
    }

    fn add(&mut self, part: &[u8]) {
        if self.rest.len() + part.len() > self.most {
            self.skipping = true;
        }
        if self.skipping {
            self.rest = Vec::new();
        } else {
            self.rest.extend_from_slice(part);
        }
    }

    fn hand_over(&mut self, take: &mut impl FnMut(Line<'_>)) {
        if std::mem::take(&mut self.skipping) {
            take(Line::TooLong(self.number));
        } else {
            take(Line::Whole(self.number, &self.rest));
        }
        self.rest.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Lines as text; `!` for one that is too long.
    fn split(pieces: &[&[u8]], most: usize) -> Vec<(u64, Vec<u8>)> {
        let mut found = Vec::new();
        let mut lines = Lines::new(most);
        let mut take = |line: Line<'_>| match line {
            Line::Whole(number, line) => found.push((number, line.to_vec())),
            Line::TooLong(number) => found.push((number, b"!".to_vec())),
        };
        for piece in pieces {
            lines.push(piece, &mut take);
        }
        lines.finish(&mut take);
        found
    }

    #[test]
    fn a_line_that_is_too_long_is_passed_over_and_the_next_is_read() {
        let found = split(&[b"abc\nabcd\nabcdefg", b"h\nx\n\nlong", b"er"], 4);
        let texts: Vec<&[u8]> = found.iter().map(|(_, text)| text.as_slice()).collect();
        assert_eq!(texts, [b"abc".as_slice(), b"abcd", b"!", b"x", b"", b"!"]);
        assert_eq!(found.last().unwrap().0, 6);
        assert_eq!(split(&[], 4), []);
        assert_eq!(split(&[b"\n"], 4), [(1, Vec::new())]);
    }

    proptest! {
        #[test]
        fn pieces_of_any_size_make_the_same_lines(
            text in proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..200),
            size in 1_usize..20,
            most in 1_usize..30,
        ) {
            let pieces: Vec<&[u8]> = text.chunks(size).collect();
            prop_assert_eq!(split(&pieces, most), split(&[&text], most));
        }
    }
}
