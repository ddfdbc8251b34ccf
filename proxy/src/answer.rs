//! What a denied client reads: the sentence as the body and the reason phrase, and the error type for
//! programs.

use bytes::Bytes;
use http::{Response, StatusCode, header};
use http_body_util::Full;
use hyper::ext::ReasonPhrase;
use outgate_rules::Denial;

/// Longest reason phrase: many CONNECT clients show it, and only it.
const MAX_PHRASE: usize = 120;

/// The answer to a request that does not go on.
#[derive(Debug, Clone)]
pub struct Answer {
    denial: Denial,
    sentence: String,
}

impl Answer {
    /// The answer for a denial of `subject`: a destination, or what was asked instead of one.
    #[must_use]
    pub fn new(denial: Denial, subject: &dyn std::fmt::Display) -> Self {
        let sentence = denial.sentence(subject);
        Self { denial, sentence }
    }

    /// As a whole HTTP/1.1 response behind which the connection closes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let body = self.body();
        format!(
            "HTTP/1.1 {} {}\r\nProxy-Status: {}\r\nContent-Type: text/plain; charset=us-ascii\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            self.denial.reason.status(),
            self.phrase(),
            self.proxy_status(),
            body.len(),
        )
        .into_bytes()
    }

    /// As a response for hyper to send.
    #[must_use]
    pub fn to_response(&self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::from(self.body()));
        *response.status_mut() =
            StatusCode::from_u16(self.denial.reason.status()).unwrap_or(StatusCode::FORBIDDEN);
        if let Ok(phrase) = ReasonPhrase::try_from(self.phrase().as_bytes()) {
            response.extensions_mut().insert(phrase);
        }
        let headers = response.headers_mut();
        headers
            .insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain; charset=us-ascii"));
        if let Ok(status) = header::HeaderValue::from_str(&self.proxy_status()) {
            headers.insert("proxy-status", status);
        }
        response
    }

    fn body(&self) -> String {
        format!("outgate: {}\n", self.sentence)
    }

    /// The sentence as far as a status line takes it.
    fn phrase(&self) -> &str {
        self.sentence.get(..self.sentence.len().min(MAX_PHRASE)).unwrap_or_default()
    }

    /// RFC 9209, with the reason's code as the details.
    fn proxy_status(&self) -> String {
        let reason = self.denial.reason;
        format!("outgate; error={}; details=\"{}\"", reason.proxy_error().token(), reason.code())
    }
}

#[cfg(test)]
mod tests {
    use outgate_rules::Reason;

    use super::*;

    #[test]
    fn every_reason_makes_a_whole_response() {
        for reason in Reason::ALL.iter().filter(|reason| !reason.allows()) {
            let answer = Answer::new((*reason).into(), &"pypi.org:443");
            let text = String::from_utf8(answer.to_bytes()).unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with(&format!("HTTP/1.1 {} pypi.org:443: ", reason.status())), "{head}");
            assert!(head.contains(&format!("details=\"{}\"", reason.code())), "{head}");
            assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
            assert_eq!(answer.to_response().status().as_u16(), reason.status());
        }
    }

    #[test]
    fn a_hostile_subject_stays_one_ascii_line() {
        let answer =
            Answer::new(Reason::HostControlByte.into(), &format!("a\r\nX: y\u{2028}{}", "z".repeat(500)));
        let text = String::from_utf8(answer.to_bytes()).unwrap();
        let status = text.lines().next().unwrap();
        assert!(status.is_ascii() && status.len() < 140, "{status}");
        assert!(!text.contains("\r\nX: y"));
    }
}
