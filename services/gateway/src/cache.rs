//! What servers last answered, for clients that don't wake them: bounded, and only what anybody may be told.
//!
//! Kept of VPSs whose spec ignores somebody, of whoever asks; used for those who are ignored, while the VPS sleeps.

mod rules;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use bytes::{Bytes, BytesMut};
use hyper::{
    HeaderMap, Method, Request, StatusCode,
    header::{AGE, HeaderName, HeaderValue},
    http::response,
};
use model::VpsName;
use tokio::time::Instant;

pub use rules::Terms;

/// Bytes of all answers, of one VPS's, and of one.
const ALL: usize = 32 << 20;
const EACH: usize = 4 << 20;
const ONE: usize = 256 << 10;
/// Answers of one VPS.
const ANSWERS: usize = 512;
/// Bytes of a host, path and query.
const ADDRESS: usize = 2048;
/// What an answer takes beside its bytes, about.
const OVERHEAD: usize = 512;

/// RFC 9211.
const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// A request as far as answers to it are concerned.
#[derive(Debug, Clone)]
pub struct Asked {
    key: Key,
    fields: HeaderMap,
    method: Method,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    head: bool,
    port: u16,
    address: Box<str>,
}

/// An answer that is kept.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    fields: HeaderMap,
    body: Bytes,
    terms: Terms,
    since: Instant,
    size: usize,
    used: u64,
}

/// Answers by VPS.
#[derive(Debug, Default)]
pub struct Cache(Mutex<Shelves>);

#[derive(Debug, Default)]
struct Shelves {
    all: HashMap<VpsName, Shelf>,
    size: usize,
    uses: u64,
}

#[derive(Debug, Default)]
struct Shelf {
    answers: HashMap<Key, Answer>,
    size: usize,
}

impl Asked {
    /// What is asked of the server at `port` of a VPS; none: of such a request nothing is kept.
    pub fn new<B>(request: &Request<B>, host: &str, port: u16) -> Option<Self> {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        let address = format!("{host}{path}");
        let head = *request.method() == Method::HEAD;
        let key = Key { head, port, address: address.into() };
        let method = request.method().clone();
        (key.address.len() <= ADDRESS).then(|| Self { key, fields: request.headers().clone(), method })
    }
}

impl Cache {
    fn lock(&self) -> MutexGuard<'_, Shelves> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A server answered: what this makes untrue is forgotten, and what may be kept is from its body on.
    pub fn answered(
        self: &Arc<Self>,
        vps: &VpsName,
        asked: Asked,
        answer: &response::Parts,
        length: Option<u64>,
    ) -> Option<Recording> {
        let error = answer.status.is_client_error() || answer.status.is_server_error();
        if !asked.method.is_safe() && !error {
            self.forget(vps, &asked);
        }
        let terms = rules::keep(&asked.method, &asked.fields, answer.status, &answer.headers, SystemTime::now())?;
        if length.is_some_and(|length| length > ONE as u64) {
            return None;
        }
        let (cache, vps, key) = (self.clone(), vps.clone(), asked.key);
        let (status, fields) = (answer.status, answer.headers.clone());
        Some(Recording { cache, vps, key, terms, status, fields, body: BytesMut::new() })
    }

    fn forget(&self, vps: &VpsName, asked: &Asked) {
        let mut shelves = self.lock();
        for head in [false, true] {
            shelves.remove(vps, &Key { head, ..asked.key.clone() });
        }
    }

    /// Forgets a VPS.
    pub fn clear(&self, vps: &VpsName) {
        let mut shelves = self.lock();
        if let Some(shelf) = shelves.all.remove(vps) {
            shelves.size -= shelf.size;
        }
    }

    /// The last answer to the same request, with its age, where there is one that may be used. To `HEAD` without a body.
    pub fn last(&self, vps: &VpsName, asked: &Asked) -> Option<(response::Parts, Bytes)> {
        let mut shelves = self.lock();
        shelves.uses += 1;
        let uses = shelves.uses;
        let shelf = shelves.all.get_mut(vps)?;
        let keys = [false, true].map(|head| Key { head, ..asked.key.clone() });
        // What was answered to `GET` is an answer to `HEAD` too.
        let usable = &keys[..if asked.key.head { 2 } else { 1 }];
        let age = |answer: &Answer| answer.terms.age + answer.since.elapsed().as_secs();
        let found = usable.iter().find(|key| {
            shelf.answers.get(key).is_some_and(|answer| answer.terms.answers(&asked.fields, age(answer)))
        })?;
        let answer = shelf.answers.get_mut(found)?;
        answer.used = uses;
        let (mut parts, ()) = hyper::Response::new(()).into_parts();
        parts.status = answer.status;
        parts.headers = answer.fields.clone();
        parts.headers.insert(AGE, HeaderValue::from(age(answer)));
        parts.headers.append(CACHE_STATUS, HeaderValue::from_static("bailiwick; hit; detail=asleep"));
        Some((parts, if asked.key.head { Bytes::new() } else { answer.body.clone() }))
    }
}

impl Shelves {
    fn remove(&mut self, vps: &VpsName, key: &Key) {
        let Some(shelf) = self.all.get_mut(vps) else { return };
        if let Some(answer) = shelf.answers.remove(key) {
            shelf.size -= answer.size;
            self.size -= answer.size;
        }
        if shelf.answers.is_empty() {
            self.all.remove(vps);
        }
    }

    fn put(&mut self, vps: VpsName, key: Key, answer: Answer) {
        self.remove(&vps, &key);
        let size = answer.size;
        let shelf = self.all.entry(vps.clone()).or_default();
        shelf.answers.insert(key, answer);
        shelf.size += size;
        self.size += size;
        while self.all.get(&vps).is_some_and(|shelf| shelf.size > EACH || shelf.answers.len() > ANSWERS) {
            self.drop_oldest(&vps);
        }
        // Who has most gives first, so that nobody's answers go for another's.
        while self.size > ALL
            && let Some((largest, _)) = self.all.iter().max_by_key(|(_, shelf)| shelf.size)
        {
            let largest = largest.clone();
            self.drop_oldest(&largest);
        }
    }

    fn drop_oldest(&mut self, vps: &VpsName) {
        let shelf = self.all.get(vps);
        let oldest = shelf.and_then(|shelf| shelf.answers.iter().min_by_key(|(_, answer)| answer.used));
        if let Some(key) = oldest.map(|(key, _)| key.clone()) {
            self.remove(vps, &key);
        }
    }
}

/// An answer on its way to a client, and into the cache when it is whole.
#[derive(Debug)]
pub struct Recording {
    cache: Arc<Cache>,
    vps: VpsName,
    key: Key,
    terms: Terms,
    status: StatusCode,
    fields: HeaderMap,
    body: BytesMut,
}

impl Recording {
    /// More of its body; false: it is too long to be kept.
    pub fn more(&mut self, bytes: &[u8]) -> bool {
        let fits = self.body.len() + bytes.len() <= ONE;
        if fits {
            self.body.extend_from_slice(bytes);
        }
        fits
    }

    /// It is whole.
    pub fn end(self) {
        let Self { cache, vps, key, terms, status, mut fields, body } = self;
        fields.remove(AGE);
        let of_fields: usize = fields.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        let size = OVERHEAD + key.address.len() + of_fields + body.len();
        let mut shelves = cache.lock();
        shelves.uses += 1;
        let used = shelves.uses;
        let (body, since) = (body.freeze(), Instant::now());
        shelves.put(vps, key, Answer { status, fields, body, terms, since, size, used });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: usize) -> VpsName {
        format!("v{number}").parse().unwrap()
    }

    fn asked(method: &str, path: &str) -> Asked {
        let request = Request::builder().method(method).uri(path).body(()).unwrap();
        Asked::new(&request, "a.example", 80).unwrap()
    }

    fn answer(cache: &Arc<Cache>, vps: usize, asked: Asked, body: &[u8]) {
        let (parts, ()) = hyper::Response::builder().header("age", "5").body(()).unwrap().into_parts();
        if let Some(mut recording) = cache.answered(&name(vps), asked, &parts, None)
            && recording.more(body)
        {
            recording.end();
        }
    }

    fn last(cache: &Cache, vps: usize, method: &str, path: &str) -> Option<(String, Bytes)> {
        let (parts, body) = cache.last(&name(vps), &asked(method, path))?;
        Some((parts.headers[AGE].to_str().unwrap().to_owned(), body))
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_answer_is_told_with_its_age() {
        let cache = Arc::<Cache>::default();
        answer(&cache, 1, asked("GET", "/a?b"), b"one");
        answer(&cache, 1, asked("GET", "/a?b"), b"two");
        tokio::time::advance(std::time::Duration::from_secs(10)).await;
        assert_eq!(last(&cache, 1, "GET", "/a?b"), Some(("15".into(), Bytes::from_static(b"two"))));
        assert_eq!(last(&cache, 1, "HEAD", "/a?b"), Some(("15".into(), Bytes::new())));
        assert!(last(&cache, 1, "GET", "/a").is_none() && last(&cache, 2, "GET", "/a?b").is_none());
        // A HEAD's answer has no body to tell.
        answer(&cache, 1, asked("HEAD", "/h"), b"");
        assert!(last(&cache, 1, "HEAD", "/h").is_some() && last(&cache, 1, "GET", "/h").is_none());
        // What was changed is not told any more.
        answer(&cache, 1, asked("POST", "/a?b"), b"");
        assert!(last(&cache, 1, "GET", "/a?b").is_none());
        cache.clear(&name(1));
        assert!(last(&cache, 1, "HEAD", "/h").is_none());
        assert_eq!(cache.lock().size, 0);
    }

    #[test]
    fn everything_is_bounded() {
        let cache = Arc::<Cache>::default();
        answer(&cache, 1, asked("GET", "/long"), &vec![0; ONE + 1]);
        assert!(last(&cache, 1, "GET", "/long").is_none());
        for number in 0..ANSWERS + 1 {
            answer(&cache, 1, asked("GET", &format!("/{number}")), b"small");
        }
        assert_eq!(cache.lock().all[&name(1)].answers.len(), ANSWERS);
        assert!(last(&cache, 1, "GET", "/0").is_none() && last(&cache, 1, "GET", "/1").is_some());
        for (vps, path) in (2..20).flat_map(|vps| (0..20).map(move |path| (vps, path))) {
            answer(&cache, vps, asked("GET", &format!("/{path}")), &vec![0; ONE]);
            let shelves = cache.lock();
            let sum: usize = shelves.all.values().map(|shelf| shelf.size).sum();
            assert!(sum == shelves.size && sum <= ALL && shelves.all.values().all(|shelf| shelf.size <= EACH));
        }
        // The small one's answers stayed.
        assert!(last(&cache, 1, "GET", "/1").is_some());
        let long = Request::builder().uri(format!("/{}", "a".repeat(ADDRESS))).body(()).unwrap();
        assert!(Asked::new(&long, "a.example", 80).is_none());
    }
}
