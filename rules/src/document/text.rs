//! Bytes as the text of a document.

use std::sync::Arc;

/// The largest file that is read, in bytes. A million names take 30 MB.
pub const MAX_FILE: usize = 256 << 20;

/// Why bytes are not the text of a policy.
pub struct NotText {
    /// The line of the first byte that is wrong, from 1.
    pub line: u32,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// Bytes as text: UTF-8 without NUL, a byte-order mark left out.
///
/// # Errors
/// Where and why they are not text.
pub fn decode(bytes: Vec<u8>) -> Result<Arc<str>, NotText> {
    let wrong = |at: usize, bytes: &[u8], message: String, hint: &str| NotText {
        line: 1 + bytes.iter().take(at).filter(|byte| **byte == b'\n').count() as u32,
        message,
        hint: Some(hint.to_owned()),
    };
    if bytes.len() > MAX_FILE {
        let message = format!("the file has {} bytes; more than {MAX_FILE} are not read", bytes.len());
        return Err(wrong(0, &bytes, message, "split it into several files"));
    }
    if let Some(at) = bytes.iter().position(|byte| *byte == 0) {
        return Err(wrong(
            at,
            &bytes,
            "the file is binary: it has a NUL byte".to_owned(),
            "a policy is UTF-8 text",
        ));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Arc::from(text.strip_prefix('\u{feff}').unwrap_or(&text))),
        Err(error) => {
            let at = error.utf8_error().valid_up_to();
            Err(wrong(at, error.as_bytes(), "the file is not UTF-8 text".to_owned(), "save it as UTF-8"))
        }
    }
}
