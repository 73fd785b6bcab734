//! Seeds as hexadecimal digits, one a line.

use zeroize::Zeroizing;

use super::PrivateKeyError;
use crate::signing::PrivateKey;

pub(super) fn read(file: &[u8]) -> Vec<Result<PrivateKey, PrivateKeyError>> {
    lines(file).map(seed).collect()
}

/// Whether a file holds nothing but hexadecimal digits and line breaks.
pub(super) fn looks_so(file: &[u8]) -> bool {
    lines(file).next().is_some() && lines(file).all(|line| line.iter().all(u8::is_ascii_hexdigit))
}

fn lines(file: &[u8]) -> impl Iterator<Item = &[u8]> {
    file.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty())
}

fn seed(line: &[u8]) -> Result<PrivateKey, PrivateKeyError> {
    let mut seed = Zeroizing::new([0; 32]);
    if line.len() != 2 * seed.len() {
        return Err(PrivateKeyError::Hex);
    }
    for (byte, pair) in seed.iter_mut().zip(line.chunks_exact(2)) {
        *byte = match pair {
            [high, low] => 16 * digit(*high)? + digit(*low)?,
            _ => return Err(PrivateKeyError::Hex),
        };
    }
    Ok(PrivateKey::from_seed(seed))
}

fn digit(digit: u8) -> Result<u8, PrivateKeyError> {
    let value = char::from(digit).to_digit(16).ok_or(PrivateKeyError::Hex)?;
    u8::try_from(value).map_err(|_| PrivateKeyError::Hex)
}
