//! Parameters: `{region}` in a rule or a preset stands for what `parameters:` says.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};

use crate::document::{Placed, Report, Span, quoted};

/// The parameters of all files together.
#[derive(Debug, Default)]
pub(crate) struct Parameters {
    given: BTreeMap<String, Placed<String>>,
    used: HashSet<String>,
}

impl Parameters {
    /// Adds a parameter; another file may repeat it and may not contradict it.
    pub(crate) fn add(&mut self, report: &mut Report, name: &Placed<String>, value: &Placed<String>) {
        match self.given.get(&name.value) {
            None => _ = self.given.insert(name.value.clone(), Placed::new(value.value.clone(), name.span)),
            Some(first) if first.value == value.value => {}
            Some(first) => {
                let message = format!("the parameter {} has two values", quoted(&name.value));
                report
                    .conflict(value.span, message, first.span, "the other one is given here")
                    .hint("a policy has one value for each parameter, whatever the number of its files");
            }
        }
    }

    /// The value of a parameter, if it is given.
    pub(crate) fn value(&mut self, name: &str) -> Option<&str> {
        let value = self.given.get(name)?;
        self.used.insert(name.to_owned());
        Some(&value.value)
    }

    /// The names of what is given, for hints.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.given.keys().map(String::as_str)
    }

    /// Fills every `{parameter}` in a text. Braces with a comma in them are a pattern's alternatives and stay.
    ///
    /// # Errors
    /// The name of the first parameter that is not given.
    pub(crate) fn fill<'t>(&mut self, text: &'t str) -> Result<Cow<'t, str>, String> {
        if !text.contains('{') {
            return Ok(Cow::Borrowed(text));
        }
        let mut filled = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, name, after)) = next_parameter(rest) {
            filled.push_str(before);
            filled.push_str(self.value(name).ok_or_else(|| name.to_owned())?);
            rest = after;
        }
        filled.push_str(rest);
        Ok(Cow::Owned(filled))
    }

    /// The parameters that nothing asked for.
    pub(crate) fn unused(&self) -> impl Iterator<Item = (&str, Span)> {
        self.given
            .iter()
            .filter(|(name, _)| !self.used.contains(*name))
            .map(|(name, value)| (name.as_str(), value.span))
    }
}

/// What stands before the first `{parameter}`, its name, and what stands behind.
fn next_parameter(text: &str) -> Option<(&str, &str, &str)> {
    let mut from = 0;
    loop {
        let open = from + text.get(from..)?.find('{')?;
        let (inner, after) = text.get(open + 1..)?.split_once('}')?;
        let word = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if !inner.is_empty() && inner.bytes().all(word) {
            return Some((text.get(..open)?, inner, after));
        }
        from = open + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Report;

    #[test]
    fn parameters_fill_and_alternatives_stay() {
        let mut report = Report::default();
        let file = report.add_file("x", "".into());
        let span = Span { file, line: 1, start: 0, end: 0 };
        let mut parameters = Parameters::default();
        let placed = |text: &str| Placed::new(text.to_owned(), span);
        parameters.add(&mut report, &placed("region"), &placed("westeurope"));
        parameters.add(&mut report, &placed("unused"), &placed("x"));
        for (text, filled) in [
            ("pypi.org", Ok("pypi.org")),
            ("{region}.azmk8s.io", Ok("westeurope.azmk8s.io")),
            ("a.{region}.{region}.io", Ok("a.westeurope.westeurope.io")),
            ("{a,b}.{region}.io", Ok("{a,b}.westeurope.io")),
            ("{a,b}.io", Ok("{a,b}.io")),
            ("{}.io", Ok("{}.io")),
            ("{region", Ok("{region")),
            ("{storage}.io", Err("storage")),
        ] {
            assert_eq!(
                parameters.fill(text).as_deref(),
                filled.map_err(str::to_owned).as_ref().copied(),
                "{text}"
            );
        }
        assert_eq!(parameters.unused().map(|(name, _)| name).collect::<Vec<_>>(), ["unused"]);
    }
}
