//! Byte-level tokenizer by the rules of nginx's `ngx_conf_read_token`: words end at white space, `;` or `{`;
//! quotes and `#` count only where a word begins; `${` does not open a block; a closing quote must be
//! followed by white space, `;`, `{` or `)`; bytes need not be UTF-8.

use std::borrow::Cow;

use super::{error::SyntaxError, lua};

/// Longest word, or comment, that nginx can read: `NGX_CONF_BUFFER` bytes.
pub const CONF_BUFFER: usize = 4096;

/// One word, by its place in the file. Offsets are bytes; lines and columns count from 1, columns in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// First byte, the opening quote included.
    pub start: u32,
    /// One past the last byte, the closing quote included.
    pub end: u32,
    /// Line of the first byte.
    pub line: u32,
    /// Column of the first byte.
    pub column: u32,
    /// Whether the word is quoted.
    pub quoted: bool,
    /// Whether the word holds a backslash, so that its value may differ from its bytes.
    pub escaped: bool,
}

impl Token {
    /// The bytes as written, quotes included.
    pub fn raw<'a>(&self, file: &'a [u8]) -> &'a [u8] {
        file.get(self.start as usize..self.end as usize).unwrap_or_default()
    }

    /// The value that nginx passes to the directive: without quotes, escapes decoded.
    pub fn value<'a>(&self, file: &'a [u8]) -> Cow<'a, [u8]> {
        let raw = self.raw(file);
        let inner =
            if self.quoted { raw.get(1..raw.len().saturating_sub(1)).unwrap_or_default() } else { raw };
        if self.escaped { Cow::Owned(unescape(inner)) } else { Cow::Borrowed(inner) }
    }
}

/// Decodes `\" \' \\ \t \r \n`; any other backslash stays.
fn unescape(word: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(word.len());
    let mut bytes = word.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        let decoded = match (byte, bytes.peek()) {
            (b'\\', Some(&next @ (b'"' | b'\'' | b'\\'))) => Some(next),
            (b'\\', Some(b't')) => Some(b'\t'),
            (b'\\', Some(b'r')) => Some(b'\r'),
            (b'\\', Some(b'n')) => Some(b'\n'),
            _ => None,
        };
        if decoded.is_some() {
            bytes.next();
        }
        out.push(decoded.unwrap_or(byte));
    }
    out
}

/// The bytes that mean nothing special inside an unquoted word.
const WORD: [bool; 256] = {
    let mut plain = [true; 256];
    let special = b" \t\r\n;{\\$";
    let mut at = 0;
    while at < special.len() {
        plain[special[at] as usize] = false;
        at += 1;
    }
    plain
};

/// What ended a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// `;`
    Semicolon,
    /// `{`
    Open,
    /// `}`, with no words before it.
    Close,
    /// The end of the text, with no words before it.
    Eof,
}

/// A refusal and the line that nginx names for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LexError {
    /// Line, from 1.
    pub line: u32,
    /// What is wrong.
    pub kind: SyntaxError,
}

/// The state of reading one text. It holds no reference to the text, so that many can be suspended at once;
/// each call must be given the same bytes. Texts of 4 GiB and more are not supported.
#[derive(Debug, Clone)]
pub struct Lexer {
    pos: usize,
    line: u32,
    line_start: usize,
    limit: usize,
}

impl Lexer {
    /// Starts at the beginning of a file.
    pub fn file() -> Self {
        Self { pos: 0, line: 1, line_start: 0, limit: CONF_BUFFER }
    }

    /// Starts at the beginning of a `-g` text, where nginx has no limit on words.
    pub fn parameter() -> Self {
        Self { limit: usize::MAX, ..Self::file() }
    }

    /// Whether this is the text of a `-g`.
    pub fn is_parameter(&self) -> bool {
        self.limit == usize::MAX
    }

    /// Line of the next byte, from 1: the line nginx gives for a directive that has just ended.
    pub fn line(&self) -> u32 {
        self.line
    }

    /// Offset of the next byte.
    pub fn offset(&self) -> usize {
        self.pos
    }

    fn error(&self, kind: SyntaxError) -> LexError {
        LexError { line: self.line, kind }
    }

    fn newline(&mut self) {
        self.line += 1;
        self.line_start = self.pos;
    }

    /// Reads words up to the next `;`, `{`, `}` or the end, and appends them to `words`.
    ///
    /// # Errors
    /// Whatever nginx refuses; the lexer must not be used afterwards.
    pub fn statement(&mut self, text: &[u8], words: &mut Vec<Token>) -> Result<End, LexError> {
        let mut empty = true;
        loop {
            let Some(&byte) = text.get(self.pos) else {
                return if empty { Ok(End::Eof) } else { Err(self.end_of_text()) };
            };
            self.pos += 1;
            match byte {
                b'\n' => self.newline(),
                b' ' | b'\t' | b'\r' => {}
                b'#' => self.comment(text, empty)?,
                b';' | b'{' if empty => return Err(self.error(SyntaxError::Unexpected(byte))),
                b';' => return Ok(End::Semicolon),
                b'{' => return Ok(End::Open),
                b'}' if empty => return Ok(End::Close),
                b'}' => return Err(self.error(SyntaxError::Unexpected(byte))),
                b'"' | b'\'' => {
                    empty = false;
                    if let Some(end) = self.quoted(text, byte, words)? {
                        return Ok(end);
                    }
                }
                _ => {
                    empty = false;
                    if let Some(end) = self.word(text, byte, words)? {
                        return Ok(end);
                    }
                }
            }
        }
    }

    /// Skips the Lua of a `*_by_lua_block`, whose `{` has been read, up to and including the matching `}`.
    ///
    /// # Errors
    /// [`SyntaxError::LuaBlock`] where the text ends first.
    pub fn lua_block(&mut self, text: &[u8]) -> Result<(), LexError> {
        let rest = text.get(self.pos..).unwrap_or_default();
        let length = lua::block_length(rest);
        let body = rest.get(..length.unwrap_or(rest.len())).unwrap_or_default();
        for (at, _) in body.iter().enumerate().filter(|(_, byte)| **byte == b'\n') {
            self.line += 1;
            self.line_start = self.pos + at + 1;
        }
        self.pos += body.len();
        if length.is_some() { Ok(()) } else { Err(self.error(SyntaxError::LuaBlock)) }
    }

    fn end_of_text(&self) -> LexError {
        self.error(if self.is_parameter() { SyntaxError::EndOfParameter } else { SyntaxError::EndOfFile })
    }

    /// The next byte of something that began at `start`. nginx keeps all of it in one buffer, and notices an
    /// end of file before it notices that the buffer is full.
    fn next(&mut self, text: &[u8], start: usize, line: u32, quote: Option<u8>) -> Result<u8, LexError> {
        let Some(&byte) = text.get(self.pos) else { return Err(self.end_of_text()) };
        self.room(text, start, line, quote)?;
        self.pos += 1;
        if byte == b'\n' {
            self.newline();
        }
        Ok(byte)
    }

    /// Whether nginx's buffer has room for one byte more, if there is one.
    fn room(&self, text: &[u8], start: usize, line: u32, quote: Option<u8>) -> Result<(), LexError> {
        if self.pos - start < self.limit || self.pos >= text.len() {
            return Ok(());
        }
        let kind = match quote {
            Some(quote) => SyntaxError::TooLongQuoted(char::from(quote)),
            None => {
                let shown = text.get(start..start + 10).unwrap_or_default();
                SyntaxError::TooLong(String::from_utf8_lossy(shown).into_owned())
            }
        };
        Err(LexError { line, kind })
    }

    fn comment(&mut self, text: &[u8], first: bool) -> Result<(), LexError> {
        let (start, line) = (self.pos - 1, self.line);
        let rest = text.get(self.pos..).unwrap_or_default();
        let length = rest.iter().position(|byte| *byte == b'\n');
        self.pos =
            self.pos.saturating_add(length.unwrap_or(rest.len())).min(start.saturating_add(self.limit));
        if first && self.pos == text.len() {
            return Ok(());
        }
        self.next(text, start, line, None).map(|_| ())
    }

    fn token(
        &self,
        start: usize,
        line: u32,
        column: usize,
        quoted: bool,
        escaped: bool,
        end: usize,
    ) -> Token {
        Token { start: narrow(start), end: narrow(end), line, column: narrow(column), quoted, escaped }
    }

    /// Passes over bytes that mean nothing special, as far as the buffer allows; returns their number.
    fn skip(&mut self, text: &[u8], start: usize, plain: impl Fn(u8) -> bool) -> usize {
        let end = start.saturating_add(self.limit).min(text.len());
        let rest = text.get(self.pos..end).unwrap_or_default();
        let length = rest.iter().position(|byte| !plain(*byte)).unwrap_or(rest.len());
        self.pos += length;
        length
    }

    fn word(&mut self, text: &[u8], first: u8, words: &mut Vec<Token>) -> Result<Option<End>, LexError> {
        let (start, line, column) = (self.pos - 1, self.line, self.pos - self.line_start);
        let mut escaped = first == b'\\';
        let mut variable = first == b'$';
        if escaped {
            self.next(text, start, line, None)?;
        }
        loop {
            let plain = self.skip(text, start, |byte| WORD[byte as usize]);
            variable &= plain == 0;
            let byte = self.next(text, start, line, None)?;
            if byte == b'{' && variable {
                continue;
            }
            variable = byte == b'$';
            let end = match byte {
                b'\\' => {
                    escaped = true;
                    self.next(text, start, line, None)?;
                    continue;
                }
                b' ' | b'\t' | b'\r' | b'\n' => None,
                b';' => Some(End::Semicolon),
                b'{' => Some(End::Open),
                _ => continue,
            };
            words.push(self.token(start, line, column, false, escaped, self.pos - 1));
            if end.is_none() {
                // nginx lets go of a word only when it has read the byte behind the white space.
                self.room(text, start, line, None)?;
            }
            return Ok(end);
        }
    }

    fn quoted(&mut self, text: &[u8], quote: u8, words: &mut Vec<Token>) -> Result<Option<End>, LexError> {
        let (start, line, column) = (self.pos - 1, self.line, self.pos - self.line_start);
        let mut escaped = false;
        loop {
            self.skip(text, start + 1, |byte| byte != quote && byte != b'\\' && byte != b'\n');
            let byte = self.next(text, start + 1, line, Some(quote))?;
            if byte == b'\\' {
                escaped = true;
                self.next(text, start + 1, line, Some(quote))?;
            } else if byte == quote {
                break;
            }
        }
        words.push(self.token(start, line, column, true, escaped, self.pos));
        match self.next(text, start + 1, line, None)? {
            b' ' | b'\t' | b'\r' | b'\n' => self.room(text, start + 1, line, None).map(|()| None),
            b';' => Ok(Some(End::Semicolon)),
            b'{' => Ok(Some(End::Open)),
            // nginx takes the bracket as the next word's first byte: `if ($a = "b")`.
            b')' => self.word(text, b')', words),
            byte => Err(self.error(SyntaxError::Unexpected(byte))),
        }
    }
}

/// Texts of 4 GiB are refused before they come here, so that nothing is ever cut.
fn narrow(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}
