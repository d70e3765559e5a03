//! Figures over rounds, and rows of them as JSON.

use std::fmt;

/// The middle, the least and the most of what the rounds gave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Figure {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Figure {
    /// Of one value a round; `None` where no round gave one.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Figure> {
        let mut values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let at = |index: usize| values.get(index).copied().unwrap_or(max);
        // Of an even number the mean of the two in the middle.
        let median = f64::midpoint(at((values.len() - 1) / 2), at(values.len() / 2));
        Some(Figure { median, min, max })
    }
}

/// One value of a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Text(String),
    Number(f64),
    Whole(u64),
    /// `null` where no round gave a value.
    Figure(Option<Figure>),
    List(Vec<Value>),
    Object(Row),
}

/// An object with its fields in their order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row(Vec<(&'static str, Value)>);

impl Row {
    pub fn set(&mut self, name: &'static str, value: impl Into<Value>) -> &mut Row {
        self.0.push((name, value.into()));
        self
    }

    /// A figure of one value a round.
    pub fn figure(&mut self, name: &'static str, values: impl IntoIterator<Item = f64>) -> &mut Row {
        self.set(name, Value::Figure(Figure::of(values)))
    }

    /// The fields of another one too.
    pub fn extend(&mut self, other: &Row) -> &mut Row {
        self.0.extend(other.0.iter().cloned());
        self
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Value {
        Value::Text(text)
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Value {
        Value::Whole(number)
    }
}

impl From<f64> for Value {
    fn from(number: f64) -> Value {
        Value::Number(number)
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Text(text) => quoted(f, text),
            Value::Number(number) => decimal(f, *number),
            Value::Whole(number) => write!(f, "{number}"),
            Value::Figure(None) => f.write_str("null"),
            Value::Figure(Some(Figure { median, min, max })) => {
                f.write_str("{\"median\": ")?;
                decimal(f, *median)?;
                f.write_str(", \"min\": ")?;
                decimal(f, *min)?;
                f.write_str(", \"max\": ")?;
                decimal(f, *max)?;
                f.write_str("}")
            }
            Value::List(values) => {
                f.write_str("[")?;
                for (index, value) in values.iter().enumerate() {
                    write!(f, "{}{value}", if index > 0 { ", " } else { "" })?;
                }
                f.write_str("]")
            }
            Value::Object(row) => write!(f, "{row}"),
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (index, (name, value)) in self.0.iter().enumerate() {
            write!(f, "{}\"{name}\": {value}", if index > 0 { ", " } else { "" })?;
        }
        f.write_str("}")
    }
}

/// JSON knows neither infinity nor NaN.
fn decimal(f: &mut fmt::Formatter<'_>, number: f64) -> fmt::Result {
    if number.is_finite() {
        // A sum of nothing is -0.
        write!(f, "{}", (number * 1e4).round() / 1e4 + 0.0)
    } else {
        f.write_str("null")
    }
}

fn quoted(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    f.write_str("\"")?;
    for letter in text.chars() {
        match letter {
            '"' => f.write_str("\\\"")?,
            '\\' => f.write_str("\\\\")?,
            '\n' => f.write_str("\\n")?,
            control if u32::from(control) < 0x20 => write!(f, "\\u{:04x}", u32::from(control))?,
            other => write!(f, "{other}")?,
        }
    }
    f.write_str("\"")
}

/// A JSON array, a row a line.
pub fn array(rows: &[Row]) -> String {
    let rows: Vec<String> = rows.iter().map(|row| format!("  {row}")).collect();
    format!("[\n{}\n]\n", rows.join(",\n"))
}

#[cfg(test)]
mod tests {
    use super::{Figure, Row, Value, array};

    #[test]
    fn a_figure_has_the_middle_of_its_rounds() {
        assert_eq!(Figure::of([3.0, 1.0, 2.0]), Some(Figure { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Figure::of([4.0, 1.0]), Some(Figure { median: 2.5, min: 1.0, max: 4.0 }));
        assert_eq!(Figure::of([1.5]), Some(Figure { median: 1.5, min: 1.5, max: 1.5 }));
        assert_eq!(Figure::of([]), None);
        assert_eq!(Figure::of([f64::NAN, 2.0]), Some(Figure { median: 2.0, min: 2.0, max: 2.0 }));
    }

    #[test]
    fn rows_are_json() {
        let mut row = Row::default();
        row.set("scenario", "cold-1").set("nodes", 8).figure("makespan", [1.0 / 3.0, 0.5]).figure("none", []);
        row.set("said", Value::List(vec!["a \"b\"\n\u{1}\\".into(), 0.25.into()]));
        row.set("machine", Value::Object(Row::default()));
        let line = "{\"scenario\": \"cold-1\", \"nodes\": 8, \
                    \"makespan\": {\"median\": 0.4167, \"min\": 0.3333, \"max\": 0.5}, \"none\": null, \
                    \"said\": [\"a \\\"b\\\"\\n\\u0001\\\\\", 0.25], \"machine\": {}}";
        assert_eq!(row.to_string(), line);
        assert_eq!(array(&[row.clone(), row]), format!("[\n  {line},\n  {line}\n]\n"));
    }

    #[test]
    fn what_is_no_number_is_null() {
        assert_eq!(Value::Number(f64::INFINITY).to_string(), "null");
    }
}
