//! Words of the filter language.

/// Where and why the text was refused.
pub(super) type Refused = (usize, &'static str);

/// A filter being read.
pub(super) struct Text<'a> {
    whole: &'a str,
    at: usize,
}

impl<'a> Text<'a> {
    pub(super) fn new(whole: &'a str) -> Self {
        Self { whole, at: 0 }
    }

    fn rest(&self) -> &'a str {
        &self.whole[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.at += next.len_utf8();
        Some(next)
    }

    pub(super) fn at_end(&self) -> bool {
        self.rest().is_empty()
    }

    pub(super) fn sees(&self, wanted: char) -> bool {
        self.peek() == Some(wanted)
    }

    pub(super) fn take(&mut self, wanted: char) -> bool {
        let seen = self.sees(wanted);
        if seen {
            self.at += wanted.len_utf8();
        }
        seen
    }

    pub(super) fn refuse(&self, what: &'static str) -> Refused {
        (self.at, what)
    }

    fn skip_space(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start().len();
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let end = rest.find(|c| !wanted(c)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    pub(super) fn field(&mut self) -> Result<String, Refused> {
        self.skip_space();
        if self.sees('"') {
            return self.quoted('"');
        }
        match self.take_while(|c| c == '_' || c.is_ascii_alphanumeric()) {
            "" => Err(self.refuse("expected the name of a field")),
            field => Ok(field.to_owned()),
        }
    }

    pub(super) fn operator(&mut self) -> Result<&'a str, Refused> {
        self.skip_space();
        match self.take_while(|c| matches!(c, '=' | '!' | '~')) {
            "" => Err(self.refuse("expected an operator (==, !=, ~=)")),
            operator => Ok(operator),
        }
    }

    pub(super) fn value(&mut self) -> Result<String, Refused> {
        self.skip_space();
        match self.peek() {
            Some('"') => self.quoted('"'),
            // containerd reads these as the beginning of a quotation, an operator or a separator.
            Some('/' | '|' | '=' | '!' | '~' | ',' | '.') | None => {
                Err(self.refuse("expected a value; one that begins with a special character needs quotes"))
            }
            Some(_) => Ok(self.take_while(|c| c != ',' && !c.is_whitespace()).to_owned()),
        }
    }

    /// A value that is a regular expression: it may stand between slashes or bars as well.
    pub(super) fn pattern(&mut self) -> Result<String, Refused> {
        self.skip_space();
        match self.peek() {
            Some(quote @ ('/' | '|')) => self.quoted(quote),
            _ => self.value(),
        }
    }

    /// A Go string: escapes may stand for single bytes, which together must be UTF-8 as all our fields are.
    fn quoted(&mut self, quote: char) -> Result<String, Refused> {
        let open = self.at;
        self.next();
        let mut bytes = Vec::new();
        loop {
            match self.next() {
                None | Some('\n') => return Err((open, "the quotation does not end")),
                Some(next) if next == quote => break,
                Some('\\') => self.escape(quote, &mut bytes)?,
                Some(c) => bytes.extend(c.encode_utf8(&mut [0; 4]).bytes()),
            }
        }
        String::from_utf8(bytes).map_err(|_| (open, "the quotation is not UTF-8"))
    }

    fn escape(&mut self, quote: char, into: &mut Vec<u8>) -> Result<(), Refused> {
        let at = self.at;
        let illegal = (at, "not an escape that Go strings have");
        if self.take(quote) {
            into.extend(quote.encode_utf8(&mut [0; 4]).bytes());
            return Ok(());
        }
        let byte = match self.next().ok_or(illegal)? {
            'a' => 7,
            'b' => 8,
            'f' => 12,
            'n' => b'\n',
            'r' => b'\r',
            't' => b'\t',
            'v' => 11,
            '\\' => b'\\',
            'x' => u8::try_from(self.digits(2, 16).ok_or(illegal)?).map_err(|_| illegal)?,
            wide @ ('u' | 'U') => {
                let digits = if wide == 'u' { 4 } else { 8 };
                let character = self.digits(digits, 16).and_then(char::from_u32).ok_or(illegal)?;
                into.extend(character.encode_utf8(&mut [0; 4]).bytes());
                return Ok(());
            }
            '0'..='7' => {
                self.at = at;
                u8::try_from(self.digits(3, 8).ok_or(illegal)?).map_err(|_| illegal)?
            }
            _ => return Err(illegal),
        };
        into.push(byte);
        Ok(())
    }

    fn digits(&mut self, count: usize, radix: u32) -> Option<u32> {
        let digits =
            self.rest().get(..count).filter(|text| text.bytes().all(|b| b.is_ascii_alphanumeric()))?;
        self.at += count;
        u32::from_str_radix(digits, radix).ok()
    }
}
