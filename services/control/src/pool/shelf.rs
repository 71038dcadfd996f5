//! Which VPSs and spares are prepared, and what to do about it next. Pure.

use std::collections::{BTreeMap, VecDeque};

use model::{ImageRef, VpsName};

use super::Spare;

/// Spares of one image.
const SPARES_EACH: usize = 2;
/// Images that spares are made of: those that new VPSs were made of last.
const IMAGES: usize = 4;
/// One of so many places is for a spare.
const SPARE_PART: usize = 4;

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Job {
    /// Prepare a VPS that sleeps.
    Prepare(VpsName),
    /// Take down what is prepared for one.
    Discard(VpsName),
    /// Make a spare.
    Make(ImageRef),
    /// Take one down.
    Drop(Spare),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sleeper {
    /// Grows with each sleep: the highest slept last. 0: not as long as this process knows.
    slept: u64,
    prepared: bool,
}

/// The state.
#[derive(Debug)]
pub struct Shelf {
    places: usize,
    clock: u64,
    sleepers: BTreeMap<VpsName, Sleeper>,
    /// By image, the one that a VPS was made of last in front.
    spares: VecDeque<(ImageRef, Vec<Spare>)>,
    /// Of images that were forgotten; to be taken down.
    pub(super) unwanted: Vec<Spare>,
}

impl Shelf {
    /// With so many places. For a moment there is one more: who slept last need not wait until another one is taken down.
    pub fn new(places: usize) -> Self {
        Self { places, clock: 0, sleepers: BTreeMap::new(), spares: VecDeque::new(), unwanted: Vec::new() }
    }

    /// A VPS fell asleep. Of more than there are places for, who slept first is forgotten.
    pub fn sleeps(&mut self, name: &VpsName) {
        self.clock += 1;
        self.enter(name, self.clock);
    }

    /// A VPS is new: it may have a place that is free.
    pub fn is_new(&mut self, name: &VpsName) {
        self.enter(name, 0);
    }

    fn enter(&mut self, name: &VpsName, slept: u64) {
        if self.places == 0 {
            return;
        }
        let prepared = self.sleepers.get(name).is_some_and(|sleeper| sleeper.prepared);
        self.sleepers.insert(name.clone(), Sleeper { slept, prepared });
        if self.sleepers.len() > 2 * self.places
            && let Some(name) = self.first(|sleeper| !sleeper.prepared)
        {
            self.sleepers.remove(&name);
        }
    }

    /// A VPS is being started.
    pub fn starts(&mut self, name: &VpsName) {
        self.sleepers.remove(name);
    }

    /// A VPS was deleted, or can't be prepared.
    pub fn gone(&mut self, name: &VpsName) {
        self.sleepers.remove(name);
    }

    /// What the host has prepared; it may be another host than before.
    pub fn found(&mut self, prepared: impl Iterator<Item = VpsName>) {
        self.sleepers.values_mut().for_each(|sleeper| sleeper.prepared = false);
        self.spares.iter_mut().for_each(|(_, spares)| spares.clear());
        self.unwanted.clear();
        for name in prepared {
            self.sleepers.entry(name).or_insert(Sleeper { slept: 0, prepared: false }).prepared = true;
        }
    }

    /// A VPS was prepared.
    pub fn prepared(&mut self, name: &VpsName) {
        if let Some(sleeper) = self.sleepers.get_mut(name) {
            sleeper.prepared = true;
        }
    }

    /// Whether it is prepared, as far as is known.
    pub fn is_prepared(&self, name: &VpsName) -> bool {
        self.sleepers.get(name).is_some_and(|sleeper| sleeper.prepared)
    }

    /// What was prepared for a VPS was taken down, and is to be made again.
    pub fn unprepared(&mut self, name: &VpsName) {
        if let Some(sleeper) = self.sleepers.get_mut(name) {
            sleeper.prepared = false;
        }
    }

    /// A spare was made of `image`, or could not be.
    pub fn made(&mut self, image: &ImageRef, spare: Option<Spare>) {
        match (self.spares.iter().position(|(other, _)| other == image), spare) {
            (Some(at), Some(spare)) => self.spares[at].1.push(spare),
            // No more of what fails, until a VPS is made of it again.
            (Some(at), None) if self.spares[at].1.is_empty() => drop(self.spares.remove(at)),
            (None, Some(spare)) => self.unwanted.push(spare),
            (_, None) => {}
        }
    }

    /// No more spares of these images, until a VPS is made of one again; those that there were.
    pub fn forget(&mut self, which: impl Fn(&ImageRef) -> bool) -> Vec<Spare> {
        let (forgotten, kept) = self.spares.drain(..).partition(|(image, _)| which(image));
        self.spares = kept;
        VecDeque::into_iter(forgotten).flat_map(|(_, spares)| spares).collect()
    }

    /// A spare of `image`; from now on there are to be some.
    pub fn take_spare(&mut self, image: &ImageRef) -> Option<Spare> {
        let at = self.spares.iter().position(|(other, _)| other == image);
        let mut entry = at.and_then(|at| self.spares.remove(at)).unwrap_or_else(|| (image.clone(), Vec::new()));
        let spare = entry.1.pop();
        self.spares.push_front(entry);
        spare
    }

    fn first(&self, which: impl Fn(&Sleeper) -> bool) -> Option<VpsName> {
        let found = self.sleepers.iter().filter(|(_, sleeper)| which(sleeper));
        found.min_by_key(|(_, sleeper)| sleeper.slept).map(|(name, _)| name.clone())
    }

    /// What is to be done next. It counts as done; who prepares or makes says how that went.
    pub fn job(&mut self) -> Option<Job> {
        if let Some(spare) = self.unwanted.pop() {
            return Some(Job::Drop(spare));
        }
        while self.spares.len() > IMAGES {
            match self.spares.back_mut().and_then(|(_, spares)| spares.pop()) {
                Some(spare) => return Some(Job::Drop(spare)),
                None => drop(self.spares.pop_back()),
            }
        }
        let spares: usize = self.spares.iter().map(|(_, spares)| spares.len()).sum();
        let prepared = self.sleepers.values().filter(|sleeper| sleeper.prepared).count();
        if prepared + spares > self.places
            && let Some(first) = self.first(|sleeper| sleeper.prepared)
        {
            self.sleepers.remove(&first);
            return Some(Job::Discard(first));
        }
        let room = prepared + spares < self.places;
        let waiting = self.sleepers.iter().filter(|(_, sleeper)| !sleeper.prepared);
        let last = waiting.max_by_key(|(_, sleeper)| sleeper.slept);
        if let Some((name, last)) = last {
            // Who slept last goes before who slept first.
            let later = || self.sleepers.values().any(|sleeper| sleeper.prepared && sleeper.slept < last.slept);
            if room || later() {
                return Some(Job::Prepare(name.clone()));
            }
        }
        let lacking = self.spares.iter().find(|(_, spares)| spares.len() < SPARES_EACH);
        let wanted = lacking.filter(|_| room && spares < self.places.div_ceil(SPARE_PART));
        wanted.map(|(image, _)| Job::Make(image.clone()))
    }
}

#[cfg(test)]
mod tests;
