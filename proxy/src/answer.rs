//! What a denied client reads: the sentence as the body and the reason phrase, and the error type for
//! programs.

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
        self.response(false, true)
    }

    /// As a whole HTTP/1.1 response to a request on a connection that `stays` open or closes behind it. One to HEAD is
    /// not `with_body`, but says how long that would be (RFC 9110 §9.3.2).
    #[must_use]
    pub fn response(&self, stays: bool, with_body: bool) -> Vec<u8> {
        let body = self.body();
        format!(
            "HTTP/1.1 {} {}\r\nProxy-Status: {}\r\nContent-Type: text/plain; charset=us-ascii\r\n\
             Content-Length: {}\r\n{}\r\n{}",
            self.denial.reason.status(),
            self.phrase(),
            self.proxy_status(),
            body.len(),
            if stays { "" } else { "Connection: close\r\n" },
            if with_body { &body } else { "" },
        )
        .into_bytes()
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
            let kept = String::from_utf8(answer.response(true, false)).unwrap();
            assert_eq!(kept, format!("{}\r\n\r\n", head.replace("\r\nConnection: close", "")));
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
