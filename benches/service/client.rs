//! The least that speaks HTTP/1.1 over one connection that is kept.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

/// A connection.
pub(crate) struct Client {
    stream: BufReader<TcpStream>,
    host: String,
    token: String,
}

/// An answer.
pub(crate) struct Answer {
    status: u16,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn expect(self, status: u16) -> Answer {
        let body = String::from_utf8_lossy(&self.body);
        assert_eq!(self.status, status, "{body}");
        self
    }
}

impl Client {
    pub(crate) fn connect(address: &str, token: &str) -> Client {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        let stream = BufReader::with_capacity(64 * 1024, stream);
        Client { stream, host: address.to_owned(), token: token.to_owned() }
    }

    pub(crate) fn get(&mut self, path: &str) -> Answer {
        self.send("GET", path, "", b"");
        self.answer()
    }

    pub(crate) fn post(&mut self, path: &str, media_type: &str, body: &[u8]) -> Answer {
        let head = format!("Content-Type: {media_type}\r\nContent-Length: {}\r\n", body.len());
        self.send("POST", path, &head, body);
        self.answer()
    }

    /// Sends a body of lines, reading the answer meanwhile; how many lines it has.
    pub(crate) fn stream_lines(&mut self, path: &str, body: &[u8]) -> usize {
        let mut sender = self.stream.get_ref().try_clone().unwrap();
        let head =
            format!("Content-Type: application/x-ndjson\r\nContent-Length: {}\r\n", body.len());
        std::thread::scope(|scope| {
            self.send("POST", path, &head, b"");
            scope.spawn(move || sender.write_all(body).unwrap());
            let answer = self.answer().expect(200);
            answer.body.iter().filter(|byte| **byte == b'\n').count()
        })
    }

    /// Opens a stream of events and reads it until the service ends.
    pub(crate) fn watch(mut self) {
        self.send("GET", "/events", "", b"");
        let mut piece = vec![0; 64 * 1024];
        while self.stream.read(&mut piece).is_ok_and(|bytes| bytes > 0) {}
    }

    fn send(&mut self, method: &str, path: &str, head: &str, body: &[u8]) {
        let Client { host, token, .. } = self;
        let mut request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n{head}\r\n"
        )
        .into_bytes();
        request.extend_from_slice(body);
        self.stream.get_mut().write_all(&request).unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn answer(&mut self) -> Answer {
        let status = self.line().split(' ').nth(1).unwrap().parse().unwrap();
        let mut length = Some(0);
        loop {
            let line = self.line().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = Some(value.parse().unwrap());
            } else if line == "transfer-encoding: chunked" {
                length = None;
            }
        }
        let mut body = Vec::new();
        match length {
            Some(length) => {
                body.resize(length, 0);
                self.stream.read_exact(&mut body).unwrap();
            }
            None => loop {
                let size = usize::from_str_radix(&self.line(), 16).unwrap();
                let start = body.len();
                body.resize(start + size, 0);
                self.stream.read_exact(&mut body[start..]).unwrap();
                self.line();
                if size == 0 {
                    break;
                }
            },
        }
        Answer { status, body }
    }
}
