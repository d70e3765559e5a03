//! The client of both: one connection, one request, and reading as fast as it can.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    time::Instant,
};

use crate::lab::Result;

/// What is read in one go.
const BUFFER_LEN: usize = 256 << 10;

/// From the connection's beginning on.
pub struct Answer {
    /// To the first byte of the body.
    pub first_byte_s: f64,
    /// To the last.
    pub seconds: f64,
}

/// Reads the whole of a body that has `len` bytes.
pub fn get(address: &str, path: &str, len: u64) -> Result<Answer> {
    read(address, path, len).map_err(|error| format!("GET http://{address}{path}: {error}").into())
}

fn read(address: &str, path: &str, len: u64) -> io::Result<Answer> {
    let mut buffer = vec![0; BUFFER_LEN];
    let start = Instant::now();
    let mut stream = TcpStream::connect(address)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let (mut head, mut body, mut first_byte_s) = (Vec::new(), None, None);
    loop {
        let read = stream.read(&mut buffer)?;
        let bytes = buffer.get(..read).unwrap_or_default();
        if read == 0 {
            break;
        }
        match &mut body {
            Some(body) => *body += read as u64,
            None => {
                head.extend_from_slice(bytes);
                if let Some(end) = head.windows(4).position(|window| window == b"\r\n\r\n") {
                    body = Some((head.len() - end - 4) as u64);
                }
            }
        }
        if first_byte_s.is_none() && body.is_some_and(|body| body > 0) {
            first_byte_s = Some(start.elapsed().as_secs_f64());
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let status = String::from_utf8_lossy(head.get(..12).unwrap_or_default()).into_owned();
    match (body, first_byte_s) {
        (Some(body), Some(first_byte_s)) if body == len && status == "HTTP/1.1 200" => {
            Ok(Answer { first_byte_s, seconds })
        }
        _ => Err(io::Error::other(format!("{status}, and a body of {body:?} bytes instead of {len}"))),
    }
}
