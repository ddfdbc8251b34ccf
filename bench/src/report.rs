//! Figures of several rounds: medians, ranges and ratios as Markdown, and bars and curves as SVG.

use std::fmt::Write as _;

use crate::proxies::Kind;

/// One figure of one round.
#[derive(Clone, Debug)]
pub struct Sample {
    /// The workload: a table of its own.
    pub workload: String,
    /// Who did it, and under which circumstances.
    pub subject: String,
    /// What was measured: a column.
    pub figure: &'static str,
    /// How much of it.
    pub value: f64,
}

/// All figures, in the order of measuring.
#[derive(Clone, Debug, Default)]
pub struct Report {
    samples: Vec<Sample>,
    notes: Vec<String>,
    against: Vec<(String, String)>,
}

impl Report {
    /// Adds a figure.
    pub fn add(
        &mut self,
        workload: impl Into<String>,
        subject: impl Into<String>,
        figure: &'static str,
        value: f64,
    ) {
        self.samples.push(Sample { workload: workload.into(), subject: subject.into(), figure, value });
    }

    /// Has the ratios of a workload that the floor cannot do made with the floor's figure in another.
    pub fn against(&mut self, workload: impl Into<String>, other: impl Into<String>) {
        let pair = (workload.into(), other.into());
        if !self.against.contains(&pair) {
            self.against.push(pair);
        }
    }

    /// Adds a sentence, once.
    pub fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// A table for each workload. The first figure is also given as a multiple of the first subject's, which is the
    /// floor where there is one.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut text = String::new();
        for workload in self.workloads() {
            let figures = distinct(self.of(workload).map(|sample| sample.figure));
            let subjects = distinct(self.of(workload).map(|sample| sample.subject.as_str()));
            let Some(first) = figures.first() else { continue };
            let Some((to, reference)) = self.reference(workload, first) else { continue };
            let _ = writeln!(text, "### {workload}\n");
            let _ = writeln!(text, "| | {} | × {} | {}", first, to, columns(&figures[1..]));
            let _ = writeln!(text, "| --- | ---: | ---: |{}", " ---: |".repeat(figures.len() - 1));
            for subject in &subjects {
                let first = self.spread(workload, subject, first);
                let ratio =
                    first.map_or("–".to_owned(), |spread| format!("{:.2}", spread.median / reference));
                let cells: Vec<String> =
                    figures[1..].iter().map(|figure| cell(self.spread(workload, subject, figure))).collect();
                let _ = writeln!(text, "| {subject} | {} | {ratio} | {}", cell(first), columns(&cells));
            }
            text.push('\n');
        }
        for note in &self.notes {
            let _ = writeln!(text, "- {note}");
        }
        text
    }

    /// The median of a figure, if it was measured.
    #[must_use]
    pub fn median(&self, workload: &str, subject: &str, figure: &str) -> Option<f64> {
        self.spread(workload, subject, figure).map(|spread| spread.median)
    }

    /// Bars for the first figure of each workload.
    #[must_use]
    pub fn plot(&self) -> String {
        let mut y = 10;
        let mut body = String::new();
        for workload in self.workloads() {
            let Some(figure) = self.of(workload).map(|sample| sample.figure).next() else { continue };
            let subjects = distinct(self.of(workload).map(|sample| sample.subject.as_str()));
            let spreads: Vec<(&str, Spread)> = subjects
                .iter()
                .filter_map(|subject| Some((*subject, self.spread(workload, subject, figure)?)))
                .collect();
            let most =
                spreads.iter().map(|(_, spread)| spread.most).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
            y += 22;
            let _ = writeln!(body, "<text x='10' y='{y}' class='h'>{workload}: {figure}</text>");
            for (subject, spread) in spreads {
                y += 18;
                let x = |value: f64| 190.0 + 480.0 * value / most;
                let class = if subject.starts_with(Kind::Outgate.name()) { "o" } else { "p" };
                let _ = writeln!(body, "<text x='184' y='{y}' text-anchor='end'>{subject}</text>");
                let _ = writeln!(
                    body,
                    "<rect x='190' y='{}' width='{:.1}' height='13' class='{class}'/>",
                    y - 11,
                    x(spread.median) - 190.0
                );
                let _ = writeln!(
                    body,
                    "<path d='M{:.1} {2}H{:.1}' class='r'/>",
                    x(spread.least),
                    x(spread.most),
                    y - 5
                );
                let _ = writeln!(
                    body,
                    "<text x='{:.1}' y='{y}'>{}</text>",
                    x(spread.most) + 5.0,
                    number(spread.median)
                );
            }
        }
        svg(760, y + 20, &body)
    }

    /// Whose figure is 1, and the figure.
    fn reference(&self, workload: &str, figure: &str) -> Option<(&str, f64)> {
        let other = self.against.iter().find(|(of, _)| of == workload);
        let floor = Kind::Floor.name();
        if let Some(median) = other.and_then(|(_, other)| self.median(other, floor, figure)) {
            return Some((floor, median));
        }
        let subject = self.of_owned(workload).next()?;
        Some((subject, self.median(workload, subject, figure)?))
    }

    fn of_owned(&self, workload: &str) -> impl Iterator<Item = &str> {
        self.samples
            .iter()
            .filter(move |sample| sample.workload == workload)
            .map(|sample| sample.subject.as_str())
    }

    fn workloads(&self) -> Vec<&str> {
        distinct(self.samples.iter().map(|sample| sample.workload.as_str()))
    }

    fn of<'a>(&'a self, workload: &'a str) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| sample.workload == workload)
    }

    fn spread(&self, workload: &str, subject: &str, figure: &str) -> Option<Spread> {
        let of = self.of(workload).filter(|sample| sample.subject == subject && sample.figure == figure);
        let mut values: Vec<f64> = of.map(|sample| sample.value).collect();
        values.sort_by(f64::total_cmp);
        Some(Spread {
            median: *values.get(values.len() / 2)?,
            least: *values.first()?,
            most: *values.last()?,
        })
    }
}

/// A curve over time for each of several measures of the same unit.
#[must_use]
pub fn curve(title: &str, unit: &str, names: &[&str], points: &[(f64, Vec<f64>)]) -> String {
    const COLOURS: [&str; 3] = ["#c2410c", "#1d4ed8", "#15803d"];
    let until = points.last().map_or(1.0, |(time, _)| *time).max(1.0);
    let most = points.iter().flat_map(|(_, values)| values.iter().copied()).fold(1.0, f64::max) * 1.1;
    let mut body = format!(
        "<text x='60' y='20' class='h'>{title}</text>\n<path d='M60 30V270H740' class='r' fill='none'/>\n"
    );
    let _ = writeln!(
        body,
        "<text x='55' y='40' text-anchor='end'>{} {unit}</text><text x='55' y='270' text-anchor='end'>0</text><text x='740' y='288' text-anchor='end'>{until:.0} s</text>",
        number(most)
    );
    for (line, name) in names.iter().enumerate() {
        let colour = COLOURS[line % COLOURS.len()];
        let path: Vec<String> = points
            .iter()
            .map(|(time, values)| {
                format!("{:.1} {:.1}", 60.0 + 680.0 * time / until, 270.0 - 240.0 * values[line] / most)
            })
            .collect();
        let _ = writeln!(
            body,
            "<path d='M{}' fill='none' stroke='{colour}' stroke-width='1.5'/>",
            path.join("L")
        );
        let _ = writeln!(body, "<text x='{}' y='288' fill='{colour}'>{name}</text>", 60 + 200 * line);
    }
    svg(760, 300, &body)
}

fn svg(width: u32, height: u32, body: &str) -> String {
    format!(
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' height='{height}'>\n\
         <style>text{{font:12px sans-serif;fill:#222}} .h{{font-weight:bold}} .p{{fill:#94a3b8}} .o{{fill:#c2410c}} .r{{stroke:#222}}</style>\n\
         <rect width='100%' height='100%' fill='#fff'/>\n{body}</svg>\n"
    )
}

#[derive(Clone, Copy)]
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

fn cell(spread: Option<Spread>) -> String {
    match spread {
        None => "–".to_owned(),
        Some(spread) if spread.least == spread.most => number(spread.median),
        Some(spread) => {
            format!("{} ({}–{})", number(spread.median), number(spread.least), number(spread.most))
        }
    }
}

/// Three digits that count.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 99.95 || size == 0.0 => format!("{value:.0}"),
        size if size >= 9.995 => format!("{value:.1}"),
        size if size >= 0.0995 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

fn columns<S: AsRef<str>>(cells: &[S]) -> String {
    cells.iter().fold(String::new(), |text, cell| text + cell.as_ref() + " | ")
}

/// Each once, in the order of the first.
fn distinct<T: PartialEq>(items: impl Iterator<Item = T>) -> Vec<T> {
    let mut known = Vec::new();
    for item in items {
        if !known.contains(&item) {
            known.push(item);
        }
    }
    known
}
