//! JSON numbers, which JSON Schema compares by value: 1 and 1.0 are the same.

use std::cmp::Ordering;

use serde_json::{Number, Value};

/// One end of a range.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Bound {
    pub(super) value: Number,
    pub(super) exclusive: bool,
}

impl Bound {
    /// The narrower of two ends, in the direction `narrower`.
    pub(super) fn narrow(a: Option<Self>, b: Option<Self>, narrower: Ordering) -> Option<Self> {
        let (a, b) = match (a, b) {
            (Some(a), Some(b)) => (a, b),
            (a, b) => return a.or(b),
        };
        let order = compare(&a.value, &b.value);
        let a_wins = order == narrower || (order == Ordering::Equal && a.exclusive);
        Some(if a_wins { a } else { b })
    }

    /// Whether `number` is within this end; `outside` is the direction out of the range.
    pub(super) fn admits(&self, number: &Number, outside: Ordering) -> bool {
        match compare(number, &self.value) {
            Ordering::Equal => !self.exclusive,
            order => order != outside,
        }
    }

    /// The same end for integers, as an inclusive bound: `step` is 1 for a minimum, -1 for a
    /// maximum. None when it does not fit in 64 bits.
    pub(super) fn inclusive_integer(&self, step: i64) -> Option<Number> {
        let nearest = match integer(&self.value) {
            Some(exact) if self.exclusive => exact.checked_add(i128::from(step))?,
            Some(exact) => exact,
            None => {
                let float = self.value.as_f64()?;
                let rounded = if step > 0 { float.ceil() } else { float.floor() };
                integer(&Number::from_f64(rounded)?)?
            }
        };
        i64::try_from(nearest).ok().map(Number::from)
    }
}

/// Compares by value: exactly for integers, in double precision otherwise.
pub(super) fn compare(a: &Number, b: &Number) -> Ordering {
    match (integer(a), integer(b)) {
        (Some(a), Some(b)) => a.cmp(&b),
        _ => {
            let (a, b) = (a.as_f64().unwrap_or_default(), b.as_f64().unwrap_or_default());
            a.total_cmp(&b)
        }
    }
}

/// The number as an integer, if its value is one, however it is written.
pub(super) fn integer(number: &Number) -> Option<i128> {
    if let Some(exact) = number.as_i128() {
        return Some(exact);
    }
    let float = number.as_f64()?;
    let in_range = float.fract() == 0.0 && float.abs() < 1e30;
    in_range.then_some(float as i128)
}

/// A text that is the same for two values exactly when JSON Schema considers them equal, for
/// comparing values by hash.
pub(super) fn canonical(value: &Value) -> String {
    let mut form = String::new();
    write_canonical(value, &mut form);
    form
}

fn write_canonical(value: &Value, form: &mut String) {
    let text = |text: &str, form: &mut String| form.push_str(&format!("{}:{text}", text.len()));
    match value {
        Value::Null => form.push('n'),
        Value::Bool(true) => form.push('t'),
        Value::Bool(false) => form.push('f'),
        Value::Number(number) => match integer(number) {
            Some(integer) => form.push_str(&format!("{integer};")),
            None => form.push_str(&format!("{:?};", number.as_f64().unwrap_or_default())),
        },
        Value::String(string) => text(string, form),
        Value::Array(values) => {
            form.push('[');
            values.iter().for_each(|value| write_canonical(value, form));
            form.push(']');
        }
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_unstable_by_key(|(name, _)| *name);
            form.push('{');
            for (name, value) in members {
                text(name, form);
                write_canonical(value, form);
            }
            form.push('}');
        }
    }
}

/// The ends of the range that contains exactly these numbers: one number, or consecutive integers.
pub(super) fn range<'n>(
    numbers: impl Iterator<Item = &'n Number>,
) -> Option<(&'n Number, &'n Number)> {
    let mut sorted: Vec<&Number> = numbers.collect();
    sorted.sort_by(|a, b| compare(a, b));
    sorted.dedup_by(|a, b| compare(a, b) == Ordering::Equal);
    let follows =
        |pair: &[&Number]| integer(pair[0]).zip(integer(pair[1])).is_some_and(|(a, b)| b - a == 1);
    let ends = (*sorted.first()?, *sorted.last()?);
    sorted.windows(2).all(follows).then_some(ends)
}
