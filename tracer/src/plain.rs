//! How bytes and paths are written in a recording: as text that a person can read, and back without loss.
//!
//! Neither is always UTF-8, and serde_json refuses paths that are not.

/// Writes bytes as text: a backslash is doubled, what is no UTF-8 is `\xNN`.
#[must_use]
pub fn text(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c == '\\' {
                text.push('\\');
            }
            text.push(c);
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

/// Reads what [`text`] has written; None for a backslash that begins nothing.
#[must_use]
pub fn bytes_of(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte != b'\\' {
            bytes.push(*byte);
            continue;
        }
        match after {
            [b'\\', after @ ..] => {
                bytes.push(b'\\');
                rest = after;
            }
            [b'x', high, low, after @ ..] => {
                let digit = |b: &u8| char::from(*b).to_digit(16).and_then(|d| u8::try_from(d).ok());
                bytes.push(digit(high)? << 4 | digit(low)?);
                rest = after;
            }
            _ => return None,
        }
    }
    Some(bytes)
}

/// Bytes: a `Vec`, `Bytes` or an array.
pub mod bytes {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    /// Writes them.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(bytes: &impl AsRef<[u8]>, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&super::text(bytes.as_ref()))
    }

    /// Reads them.
    ///
    /// # Errors
    /// If it is no such text, or has another length than an array.
    pub fn deserialize<'de, D: Deserializer<'de>, T: TryFrom<Vec<u8>>>(from: D) -> Result<T, D::Error> {
        let text = String::deserialize(from)?;
        let bytes =
            super::bytes_of(&text).ok_or_else(|| D::Error::custom("a backslash that begins no byte"))?;
        T::try_from(bytes).map_err(|_| D::Error::custom("not as many bytes as there should be"))
    }
}

/// A path.
pub mod path {
    use std::{
        ffi::OsString,
        os::unix::ffi::{OsStrExt as _, OsStringExt as _},
        path::{Path, PathBuf},
    };

    use serde::{Deserializer, Serializer};

    /// Writes it.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
        super::bytes::serialize(&path.as_os_str().as_bytes(), to)
    }

    /// Reads it.
    ///
    /// # Errors
    /// If it is no such text.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
        super::bytes::deserialize::<D, Vec<u8>>(from).map(|bytes| OsString::from_vec(bytes).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_comes_back() {
        let all: Vec<u8> = (0..=255).collect();
        for bytes in [&all[..], b"", b"\\", b"\\x41", "é→".as_bytes(), b"\xf0\x9f"] {
            assert_eq!(bytes_of(&text(bytes)).as_deref(), Some(bytes));
        }
        assert_eq!(text(b"GET /\r\n\\\xff"), "GET /\r\n\\\\\\xff");
    }

    #[test]
    fn what_nobody_wrote_is_refused() {
        for text in ["\\", "\\n", "\\x", "\\xg0", "\\x4"] {
            assert_eq!(bytes_of(text), None, "{text}");
        }
    }
}
