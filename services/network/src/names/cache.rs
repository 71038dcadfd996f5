//! Answers of resolvers, for as long as they say (RFC 1035, 2181, 2308). Each tenant has its own: nobody can find out by the time an
//! answer takes what another one asked for.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Answers of one tenant, and of all together.
const OF_ONE: usize = 256;
const OF_ALL: usize = 8192;
/// Bytes of an answer that is kept.
const LARGEST: usize = 4096;
/// Longest time that one is kept, whatever it says.
const LONGEST: Duration = Duration::from_secs(3600);

/// Bytes before the questions.
const HEAD: usize = 12;
const NO_ERROR: u8 = 0;
const NO_NAME: u8 = 3;
const TRUNCATED: u8 = 0x02;
const SOA: u16 = 6;
/// Its time to live is none (RFC 6891).
const OPT: u16 = 41;

/// All that is kept, by tenant.
#[derive(Debug)]
pub struct Cache<T>(Mutex<Kept<T>>);

#[derive(Debug)]
struct Kept<T> {
    tenants: HashMap<T, HashMap<Box<[u8]>, Entry>>,
    count: usize,
}

#[derive(Debug)]
struct Entry {
    answer: Box<[u8]>,
    /// Where times to live are in it.
    times: Box<[u16]>,
    from: Instant,
    until: Instant,
}

impl<T> Default for Cache<T> {
    fn default() -> Self {
        Self(Mutex::new(Kept { tenants: HashMap::new(), count: 0 }))
    }
}

impl<T: Clone + Eq + Hash> Cache<T> {
    fn lock(&self) -> MutexGuard<'_, Kept<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was answered to the same query of that tenant, with the times that are left; the number is the query's.
    pub fn get(&self, tenant: &T, query: &[u8]) -> Option<Vec<u8>> {
        let now = Instant::now();
        let kept = self.lock();
        let entry = kept.tenants.get(tenant)?.get(query.get(2..)?).filter(|entry| entry.until > now)?;
        let mut answer = entry.answer.to_vec();
        answer[..2].copy_from_slice(&query[..2]);
        let passed = now.duration_since(entry.from).as_secs() as u32;
        for at in entry.times.iter().map(|at| usize::from(*at)) {
            if let Some(time) = answer.get_mut(at..at + 4).and_then(|bytes| bytes.first_chunk_mut::<4>()) {
                *time = u32::from_be_bytes(*time).saturating_sub(passed).to_be_bytes();
            }
        }
        Some(answer)
    }

    /// Keeps what was answered, if it may be.
    pub fn put(&self, tenant: &T, query: &[u8], answer: &[u8]) {
        let (Some(query), Some((times, time))) = (query.get(2..), look(answer)) else { return };
        if time.is_zero() || answer.len() > LARGEST {
            return;
        }
        let from = Instant::now();
        let entry = Entry { answer: answer.into(), times: times.into(), from, until: from + time.min(LONGEST) };
        let mut kept = self.lock();
        let kept = &mut *kept;
        let own = kept.tenants.entry(tenant.clone()).or_default();
        if own.len() >= OF_ONE || kept.count >= OF_ALL {
            let before = own.len();
            own.retain(|_, entry| entry.until > from);
            if own.len() >= OF_ONE || (kept.count >= OF_ALL && own.len() == before) {
                // Whose time is over first.
                let first = own.iter().min_by_key(|(_, entry)| entry.until).map(|(query, _)| query.clone());
                let Some(first) = first else { return };
                own.remove(&first);
            }
            kept.count -= before - own.len();
        }
        kept.count += usize::from(own.insert(query.into(), entry).is_none());
    }
}

/// Where times to live are in an answer, and how long it may be kept; none: it may not, or can't be read.
fn look(answer: &[u8]) -> Option<(Vec<u16>, Duration)> {
    let head = answer.first_chunk::<HEAD>()?;
    let code = head[3] & 0x0f;
    if head[2] & TRUNCATED != 0 || !matches!(code, NO_ERROR | NO_NAME) {
        return None;
    }
    let number = |at: usize| Some(u16::from_be_bytes(*answer.get(at..)?.first_chunk()?));
    let [questions, answers, authorities, more] = [4, 6, 8, 10].map(|at| number(at).unwrap_or(0));
    let mut at = HEAD;
    for _ in 0..questions {
        at = after_name(answer, at)? + 4;
    }
    let (mut times, mut least, mut negative) = (Vec::new(), None::<u32>, None::<u32>);
    for record in 0..usize::from(answers) + usize::from(authorities) + usize::from(more) {
        let fixed = after_name(answer, at)?;
        let (kind, length) = (number(fixed)?, usize::from(number(fixed + 8)?));
        let data = fixed + 10;
        at = data + length;
        answer.get(data..at)?;
        if kind == OPT {
            continue;
        }
        times.push(u16::try_from(fixed + 4).ok()?);
        let time = u32::from_be_bytes(*answer.get(fixed + 4..)?.first_chunk()?);
        least = Some(least.map_or(time, |least| least.min(time)));
        if kind == SOA && record >= usize::from(answers) {
            // The last number of its data says how long it is known that there is nothing.
            let minimum = u32::from_be_bytes(*answer.get(at.checked_sub(4)?..)?.first_chunk()?);
            negative = Some(time.min(minimum));
        }
    }
    // Where nothing was found only that says for how long.
    let time = if answers == 0 || code == NO_NAME { negative? } else { least? };
    Some((times, Duration::from_secs(time.into())))
}

/// Where a name ends that begins at `at`.
fn after_name(message: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *message.get(at)? {
            0 => return Some(at + 1),
            length if length & 0xc0 == 0xc0 => return Some(at + 2),
            length if length & 0xc0 == 0 => at += 1 + usize::from(length),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const QUERY: &[u8] = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x03www\x07example\x00\x00\x01\x00\x01";

    /// An answer with one address, to be kept for so many seconds.
    fn found(time: u32) -> Vec<u8> {
        let mut answer = QUERY.to_vec();
        (answer[2], answer[3], answer[7]) = (0x81, 0x80, 1);
        answer.extend(b"\xc0\x0c\x00\x01\x00\x01");
        answer.extend(time.to_be_bytes());
        answer.extend(b"\x00\x04\xcb\x00\x71\x07");
        answer
    }

    /// There is no such name: for so long, or as long as the zone says.
    fn none(time: u32, minimum: u32) -> Vec<u8> {
        let mut answer = QUERY.to_vec();
        (answer[2], answer[3], answer[9]) = (0x81, 0x83, 1);
        answer.extend(b"\xc0\x10\x00\x06\x00\x01");
        answer.extend(time.to_be_bytes());
        answer.extend(b"\x00\x16\x00\x00");
        answer.extend([0; 16]);
        answer.extend(minimum.to_be_bytes());
        answer
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_kept_as_long_as_it_says_and_tells_what_is_left() {
        let cache = Cache::default();
        cache.put(&"acme", QUERY, &found(60));
        tokio::time::advance(Duration::from_secs(20)).await;
        let mut again = QUERY.to_vec();
        again[0] = 0x99;
        let mut expected = found(40);
        expected[0] = 0x99;
        assert_eq!(cache.get(&"acme", &again), Some(expected));
        assert_eq!(cache.get(&"beta", &again), None, "it is another tenant's");
        tokio::time::advance(Duration::from_secs(40)).await;
        assert_eq!(cache.get(&"acme", QUERY), None);
    }

    #[tokio::test(start_paused = true)]
    async fn that_there_is_nothing_is_kept_as_long_as_the_zone_says() {
        let cache = Cache::default();
        cache.put(&(), QUERY, &none(300, 5));
        assert!(cache.get(&(), QUERY).is_some());
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(cache.get(&(), QUERY), None);
    }

    #[test]
    fn what_may_not_be_kept_is_not() {
        let with = |at: usize, byte: u8| {
            let mut answer = found(60);
            answer[at] = byte;
            answer
        };
        let nothing = {
            let mut answer = QUERY.to_vec();
            answer[2] = 0x81;
            answer
        };
        for answer in [found(0), with(2, 0x83), with(3, 0x82), nothing, QUERY[..7].to_vec(), Vec::new()] {
            let cache = Cache::default();
            cache.put(&(), QUERY, &answer);
            assert_eq!(cache.get(&(), QUERY), None, "{answer:?}");
        }
    }

    #[test]
    fn a_tenant_that_asks_for_much_takes_its_own_place_alone() {
        let cache = Cache::default();
        let query = |n: u32| [&n.to_be_bytes()[..], QUERY].concat();
        cache.put(&"beta", QUERY, &found(9));
        for n in 0..2 * OF_ONE as u32 {
            cache.put(&"acme", &query(n), &found(60 + n));
        }
        assert!(cache.get(&"beta", QUERY).is_some());
        let kept = (0..2 * OF_ONE as u32).filter(|n| cache.get(&"acme", &query(*n)).is_some()).count();
        assert_eq!((kept, cache.lock().count), (OF_ONE, OF_ONE + 1));
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80), at in any::<prop::sample::Index>(), to in any::<u8>()) {
            let mut answer = none(60, 60);
            let at = at.index(answer.len());
            answer[at] = to;
            for answer in [bytes, answer] {
                let cache = Cache::default();
                cache.put(&(), QUERY, &answer);
                let _ = cache.get(&(), QUERY);
            }
        }
    }
}
