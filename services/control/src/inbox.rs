//! A bounded queue that takes no memory while it is empty: of ten thousand VPSs nearly all have nothing to hear.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Notify, Semaphore};

/// The queue: many send, one receives.
#[derive(Debug)]
pub struct Inbox<T> {
    waiting: Mutex<VecDeque<T>>,
    room: Semaphore,
    news: Notify,
}

/// Nobody receives any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed;

impl<T> Inbox<T> {
    /// For so many; who has more waits.
    pub fn new(most: usize) -> Self {
        Self { waiting: Mutex::default(), room: Semaphore::new(most), news: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<T>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds to the queue, when there is room.
    pub async fn send(&self, message: T) -> Result<(), Closed> {
        let place = self.room.acquire().await.map_err(|_| Closed)?;
        let mut waiting = self.lock();
        // Under the lock: what was added before the end is dropped with the rest.
        if self.room.is_closed() {
            return Err(Closed);
        }
        place.forget();
        waiting.push_back(message);
        drop(waiting);
        self.news.notify_one();
        Ok(())
    }

    /// Adds to the queue, if there is room at once.
    pub fn try_send(&self, message: T) {
        let Ok(place) = self.room.try_acquire() else { return };
        let mut waiting = self.lock();
        if !self.room.is_closed() {
            place.forget();
            waiting.push_back(message);
            self.news.notify_one();
        }
    }

    /// The next of the queue; waits for it. For one receiver.
    pub async fn receive(&self) -> T {
        // Who always has more must not keep others waiting.
        tokio::task::coop::consume_budget().await;
        loop {
            let next = {
                let mut waiting = self.lock();
                let next = waiting.pop_front();
                if waiting.is_empty() {
                    *waiting = VecDeque::new();
                }
                next
            };
            if let Some(message) = next {
                self.room.add_permits(1);
                return message;
            }
            self.news.notified().await;
        }
    }

    /// Takes no more, and drops what waits.
    pub fn close(&self) {
        let mut waiting = self.lock();
        self.room.close();
        waiting.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn it_keeps_order_and_bound_and_ends() {
        let inbox = Arc::new(Inbox::new(2));
        let sender = inbox.clone();
        let sending = tokio::spawn(async move {
            for n in 0..100 {
                sender.send(n).await?;
            }
            Ok::<_, Closed>(())
        });
        tokio::task::yield_now().await;
        assert_eq!(inbox.lock().len(), 2);
        for n in 0..100 {
            assert_eq!(inbox.receive().await, n);
        }
        assert_eq!(sending.await.unwrap(), Ok(()));
        assert_eq!(inbox.lock().capacity(), 0, "it is empty and takes memory");
        let (answer, dropped) = tokio::sync::oneshot::channel::<()>();
        let asking: Inbox<tokio::sync::oneshot::Sender<()>> = Inbox::new(2);
        asking.send(answer).await.unwrap();
        asking.close();
        assert!(dropped.await.is_err(), "who waits for an answer is left waiting");
        inbox.close();
        assert_eq!(inbox.send(1).await, Err(Closed));
    }
}
