//! Finds the replies to a COMMIT in what a server sends.
//!
//! "Message Formats" in PostgreSQL's manual: a byte for the kind, four for the length that counts
//! itself but not the kind, then the rest. Before the first message, a server answers each request
//! for encryption with a single byte: N for no, S or G for yes.

/// The longest CommandComplete that is looked into; "COMMIT" makes one of 12 bytes.
const LONGEST_TAG: usize = 64;

/// How far a server's stream has been read.
#[derive(Debug, Default)]
pub(super) struct Replies {
    phase: Phase,
    /// Bytes of the message under way that have nothing more to tell.
    left: usize,
    /// The beginning of a message, kept until it is clear what it is.
    kept: Vec<u8>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    BeforeTheFirstMessage,
    Messages,
    Encrypted,
}

/// What of a piece of data goes on to the client.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Passed {
    pub(super) data: Vec<u8>,
    /// A reply to a COMMIT was dropped, and what came behind it.
    pub(super) is_dropped: bool,
}

impl Replies {
    /// Takes the next data of a stream; `drops` is asked at each reply to a COMMIT.
    pub(super) fn pass(&mut self, data: &[u8], mut drops: impl FnMut() -> bool) -> Passed {
        self.kept.extend_from_slice(data);
        let mut passed = Passed::default();
        loop {
            let ready = match self.phase {
                Phase::Encrypted => self.kept.len(),
                Phase::BeforeTheFirstMessage => match self.kept.first() {
                    None => 0,
                    Some(b'N') => 1,
                    Some(b'S' | b'G') => {
                        self.phase = Phase::Encrypted;
                        continue;
                    }
                    Some(_) => {
                        self.phase = Phase::Messages;
                        continue;
                    }
                },
                Phase::Messages if self.left > 0 => self.left.min(self.kept.len()),
                Phase::Messages => {
                    let Some((&[kind, a, b, c, d], _)) = self.kept.split_first_chunk() else {
                        return passed;
                    };
                    let length = 1 + u32::from_be_bytes([a, b, c, d]) as usize;
                    if kind == b'C' && length <= LONGEST_TAG {
                        let Some(message) = self.kept.get(..length) else { return passed };
                        if &message[5..] == b"COMMIT\0" && drops() {
                            passed.is_dropped = true;
                            return passed;
                        }
                    }
                    self.left = length;
                    continue;
                }
            };
            if ready == 0 {
                return passed;
            }
            passed.data.extend(self.kept.drain(..ready));
            self.left = self.left.saturating_sub(ready);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap();
        [&[kind], &length.to_be_bytes()[..], body].concat()
    }

    /// A server's answers to BEGIN, a SELECT whose row looks like a COMMIT, COMMIT and SELECT.
    fn session() -> Vec<u8> {
        let row = message(b'C', b"COMMIT\0");
        [
            message(b'R', &[0; 4]),
            message(b'C', b"BEGIN\0"),
            message(b'D', &row),
            message(b'C', b"SELECT 1\0"),
            message(b'C', b"COMMIT\0"),
            message(b'Z', b"I"),
        ]
        .concat()
    }

    fn pass_in_pieces(stream: &[u8], bytes: usize, mut drops: impl FnMut() -> bool) -> Passed {
        let mut replies = Replies::default();
        let mut all = Passed::default();
        for piece in stream.chunks(bytes) {
            let passed = replies.pass(piece, &mut drops);
            all.data.extend(passed.data);
            if passed.is_dropped {
                all.is_dropped = true;
                break;
            }
        }
        all
    }

    #[test]
    fn everything_passes_unchanged_while_nothing_is_to_be_dropped() {
        for bytes in 1..=session().len() {
            let mut commits = 0;
            let passed = pass_in_pieces(&session(), bytes, || {
                commits += 1;
                false
            });
            assert_eq!(passed, Passed { data: session(), is_dropped: false });
            assert_eq!(commits, 1, "in pieces of {bytes}");
        }
    }

    #[test]
    fn what_stands_before_the_reply_to_a_commit_passes_and_nothing_of_it() {
        let tail = message(b'C', b"COMMIT\0").len() + message(b'Z', b"I").len();
        let before = session()[..session().len() - tail].to_vec();
        for bytes in 1..=session().len() {
            let passed = pass_in_pieces(&session(), bytes, || true);
            assert_eq!(passed, Passed { data: before.clone(), is_dropped: true }, "of {bytes}");
        }
    }

    #[test]
    fn a_refused_encryption_comes_before_the_first_message() {
        let stream = [b"NN".to_vec(), session()].concat();
        assert!(pass_in_pieces(&stream, 1, || true).is_dropped);
    }

    #[test]
    fn an_encrypted_stream_passes_as_it_is() {
        let stream = [b"NS".to_vec(), session()].concat();
        let passed = pass_in_pieces(&stream, 7, || true);
        assert_eq!(passed, Passed { data: stream, is_dropped: false });
    }
}
