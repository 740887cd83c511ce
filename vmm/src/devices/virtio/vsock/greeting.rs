//! The one line that a host client sends before it owns a stream. Pure.

/// Longest line, with its end.
pub const MAX_LINE: usize = 32;

/// What a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// A connection to this port in the guest.
    Connect(u32),
    /// One connection from the guest to this port of the host.
    Listen(u32),
}

/// What the bytes so far amount to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Greeting {
    /// Not a whole line yet.
    Partial,
    /// A line of `len` bytes, end included. What follows is the stream's.
    Line { wish: Wish, len: usize },
    /// Not a greeting, whatever may follow.
    Wrong,
}

/// Reads the first bytes of a client.
pub fn parse(bytes: &[u8]) -> Greeting {
    let head = &bytes[..bytes.len().min(MAX_LINE)];
    match head.iter().position(|&byte| byte == b'\n') {
        Some(end) => match parse_line(&head[..end]) {
            Some(wish) => Greeting::Line { wish, len: end + 1 },
            None => Greeting::Wrong,
        },
        None if head.len() < MAX_LINE => Greeting::Partial,
        None => Greeting::Wrong,
    }
}

fn parse_line(line: &[u8]) -> Option<Wish> {
    let (word, port) = std::str::from_utf8(line).ok()?.split_once(' ')?;
    // `parse` would also take a sign.
    if !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let port = port.parse().ok()?;
    match word {
        "CONNECT" => Some(Wish::Connect(port)),
        "LISTEN" => Some(Wish::Listen(port)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_ends_where_the_stream_begins() {
        let wish = Wish::Connect(1025);
        assert_eq!(
            parse(b"CONNECT 1025\nGET / HTTP/1.1\r\n"),
            Greeting::Line { wish, len: 13 }
        );
        let wish = Wish::Listen(u32::MAX);
        assert_eq!(
            parse(b"LISTEN 4294967295\n"),
            Greeting::Line { wish, len: 18 }
        );
    }

    #[test]
    fn every_beginning_of_a_line_is_partial() {
        let line = b"CONNECT 1025\n";
        for len in 0..line.len() {
            assert_eq!(parse(&line[..len]), Greeting::Partial);
        }
    }

    #[test]
    fn anything_else_is_wrong() {
        let lines: [&[u8]; 11] = [
            b"\n",
            b"CONNECT\n",
            b"CONNECT \n",
            b"CONNECT +1\n",
            b"CONNECT -1\n",
            b"CONNECT 4294967296\n",
            b"CONNECT 1 \n",
            b"CONNECT  1\n",
            b"connect 1\n",
            b"CONNECT 1\r\n",
            b"\xff\xfe 1\n",
        ];
        for line in lines {
            assert_eq!(parse(line), Greeting::Wrong, "{line:?}");
        }
        assert_eq!(parse(&[b'1'; MAX_LINE]), Greeting::Wrong);
        assert_eq!(
            parse(b"CONNECT 0000000000000000000000001\n"),
            Greeting::Wrong
        );
    }
}
