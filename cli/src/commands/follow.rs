//! Streams of lines. One that is followed goes on when `control` was restarted under it.

use hyper::Method;
use serde::de::DeserializeOwned;

use crate::{client::Host, failure::Result};

/// How often a stream is opened again that breaks off without a line.
const REOPENED: u32 = 3;

/// A line that has its place in time.
pub trait Timed: DeserializeOwned {
    /// Its time.
    type Time: Ord + Clone;
    /// Its time.
    fn time(&self) -> Self::Time;
}

/// Gives each line of the stream at `path` to `take`. With `again` a stream that breaks off is opened again there, and what
/// was given before is not given twice.
pub async fn lines<T: Timed>(
    host: &Host,
    path: &str,
    again: Option<&str>,
    mut take: impl FnMut(T) -> Result<()>,
) -> Result<()> {
    let mut stream = host.stream(Method::GET, path, None::<&()>).await?;
    let (mut broken, mut had, mut skip) = (0, Had { last: None, count: 0 }, None);
    loop {
        match (stream.next::<T>().await, again) {
            (Ok(Some(line)), _) => {
                broken = 0;
                if !is_repeated(&mut skip, &line.time()) {
                    had.note(line.time());
                    take(line)?;
                }
            }
            (Ok(None), _) => return Ok(()),
            (Err(failure), Some(again)) if failure.is_broken_off() && broken < REOPENED => {
                broken += 1;
                skip = Some(had.clone());
                stream = host.stream(Method::GET, again, None::<&()>).await?;
            }
            (Err(failure), _) => return Err(failure),
        }
    }
}

/// What has been given: the time of the last line, and how many lines have that time.
#[derive(Clone)]
struct Had<T> {
    last: Option<T>,
    count: usize,
}

impl<T: Ord> Had<T> {
    fn note(&mut self, time: T) {
        self.count = if self.last.as_ref() == Some(&time) { self.count + 1 } else { 1 };
        self.last = Some(time);
    }
}

/// Whether a line of that time, in a stream that was opened again, was given before.
fn is_repeated<T: Ord>(skip: &mut Option<Had<T>>, time: &T) -> bool {
    let Some(Had { last: Some(last), count }) = skip else { return false };
    if time < last {
        return true;
    }
    if time == last && *count > 0 {
        *count -= 1;
        return true;
    }
    *skip = None;
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_one_time_are_counted() {
        let mut had = Had { last: None, count: 0 };
        [1, 2, 2].into_iter().for_each(|time| had.note(time));
        let mut skip = Some(had);
        let again = [1, 2, 2, 2, 3, 1].map(|time| is_repeated(&mut skip, &time));
        assert_eq!(again, [true, true, true, false, false, false]);
        assert!(!is_repeated(&mut Some(Had { last: None, count: 0 }), &1));
    }
}
