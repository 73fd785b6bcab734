//! The KEKs that a process has been given: the first seals, any opens.

use super::{Kek, KekId};

/// One KEK or more, in the user's order.
#[derive(Debug)]
pub struct Keks {
    first: LoadedKek,
    others: Vec<LoadedKek>,
}

/// A KEK, and where it came from.
#[derive(Debug)]
pub struct LoadedKek {
    /// The KEK.
    pub kek: Kek,
    /// Its source, for people.
    pub source: String,
}

impl Keks {
    /// One KEK alone.
    #[must_use]
    pub fn one(kek: Kek, source: String) -> Self {
        Keks { first: LoadedKek { kek, source }, others: Vec::new() }
    }

    /// All of these; `None` if there is none. One that comes twice is kept once.
    #[must_use]
    pub fn of(keks: impl IntoIterator<Item = LoadedKek>) -> Option<Self> {
        let mut keks = keks.into_iter();
        let mut all = Keks { first: keks.next()?, others: Vec::new() };
        for kek in keks {
            if all.find(&kek.kek.id()).is_none() {
                all.others.push(kek);
            }
        }
        Some(all)
    }

    /// The one that seals.
    #[must_use]
    pub fn first(&self) -> &Kek {
        &self.first.kek
    }

    /// The one of that name.
    #[must_use]
    pub fn find(&self, id: &KekId) -> Option<&Kek> {
        self.iter().map(|loaded| &loaded.kek).find(|kek| kek.id() == *id)
    }

    /// All of them, the first first.
    pub fn iter(&self) -> impl Iterator<Item = &LoadedKek> {
        std::iter::once(&self.first).chain(&self.others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_seals_and_all_are_found_by_name() {
        let keks: Vec<Kek> = (1..=3).map(|n| Kek::copy_of(&[n; 32]).unwrap()).collect();
        let ids: Vec<KekId> = keks.iter().map(Kek::id).collect();
        let loaded = |kek| LoadedKek { kek, source: "a test".to_owned() };
        let again = Kek::copy_of(&[2; 32]).unwrap();
        let all = Keks::of(keks.into_iter().chain([again]).map(loaded)).unwrap();
        assert_eq!(all.first().id(), ids[0]);
        assert_eq!(all.iter().count(), 3);
        for id in &ids {
            assert_eq!(all.find(id).map(Kek::id).as_ref(), Some(id));
        }
        assert!(all.find(&KekId("unknown".to_owned())).is_none());
        assert!(Keks::of([]).is_none());
    }
}
