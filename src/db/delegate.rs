//! What both stores do in the same words: the methods of [`Store`](super::Store) that only choose a
//! transaction or a read, and leave the rest to functions over either database.

/// Those methods, inside an `impl Store`. `$lock_ring` reads the ring's row under its lock.
macro_rules! shared_methods {
    ($lock_ring:path) => {
        fn check_out(&self, request: &CheckOut) -> Result<CheckedOut, StoreError> {
            let (checked_out, tick) =
                self.run_tx("check_out", |c| protocol::check_out(self, c, request))?;
            self.seen.saw(request.ring, tick);
            Ok(checked_out)
        }

        fn load_batch(
            &self,
            ring: RingId,
            range: &BatchRange,
            after: Option<Position>,
            max_bytes: usize,
        ) -> Result<Vec<Record>, StoreError> {
            self.read_by_index(|c| protocol::load_batch(c, ring, range, after, max_bytes))
        }

        fn progress(&self, ring: RingId) -> Result<Progress, StoreError> {
            self.read(|c| shared::progress(c, ring))
        }

        fn tally(&self, ring: RingId, after: Tick) -> Result<Vec<KeyTally>, StoreError> {
            self.read(|c| watch::tally(c, ring, after))
        }

        fn unfinished(&self, ring: RingId) -> Result<Progress, StoreError> {
            self.read(|c| shared::unfinished(c, ring))
        }

        fn glance_at_keys(&self, ring: RingId) -> Result<Vec<KeyGlance>, StoreError> {
            self.read(|c| watch::glance_at_keys(c, ring))
        }

        fn remaining(&self, ring: RingId) -> Result<Remaining, StoreError> {
            self.read(|c| remaining::remaining(c, ring, false))
        }

        fn all_in_batches(&self, ring: RingId) -> Result<bool, StoreError> {
            self.read(|c| remaining::all_in_batches(c, ring))
        }

        fn remaining_in_batches(&self, ring: RingId) -> Result<Remaining, StoreError> {
            self.read(|c| remaining::remaining(c, ring, true))
        }

        fn record_count(&self, ring: RingId) -> Result<u64, StoreError> {
            self.read(|c| remaining::records(c, ring))
        }

        fn backlog(&self, ring: RingId, most: u32) -> Result<Backlog, StoreError> {
            self.read(|c| watch::backlog(c, ring, most))
        }

        fn public_keys(&self) -> Result<Vec<Vec<u8>>, StoreError> {
            self.read(watch::public_keys)
        }

        fn report(&self, report: &NodeReport) -> Result<(), StoreError> {
            self.run_tx("report", |c| nodes::report(c, &self.node, report))
        }

        fn orders(&self, ring: RingId) -> Result<NodeOrders, StoreError> {
            self.read(|c| nodes::orders(c, &self.node, ring))
        }

        fn nodes(&self) -> Result<Vec<Node>, StoreError> {
            self.read(nodes::nodes)
        }

        fn database_id(&self) -> Result<String, StoreError> {
            self.read(keks::database_id)
        }

        fn ring(&self, name: &str) -> Result<Ring, StoreError> {
            self.read(|c| shared::ring_by_name(c, name))
        }

        fn create_ring(
            &self,
            name: &str,
            provider: Provider,
            actor: &str,
        ) -> Result<Ring, StoreError> {
            self.run_tx("admin", |c| admin::create_ring(c, name, provider, actor))
        }

        fn rings(&self) -> Result<Vec<Ring>, StoreError> {
            self.read(shared::rings)
        }

        fn kek_checks(&self) -> Result<Vec<KekCheck>, StoreError> {
            self.read(keks::kek_checks)
        }

        fn add_kek(&self, check: &KekCheck) -> Result<(), StoreError> {
            self.run_tx("keys", |c| keks::add_kek(c, check))
        }

        fn add_first_kek(&self, check: &KekCheck) -> Result<bool, StoreError> {
            self.run_tx("keys", |c| keks::add_first_kek(c, check))
        }

        fn kek_usage(&self) -> Result<Vec<KekUsage>, StoreError> {
            self.read(keks::kek_usage)
        }

        fn forget_kek(&self, kek_id: &str, actor: &str) -> Result<bool, StoreError> {
            self.run_tx("keys", |c| keks::forget_kek(c, kek_id, actor))
        }

        fn data_keys(&self, ring: RingId) -> Result<Vec<DataKeyRow>, StoreError> {
            self.read(|c| keks::data_keys(c, ring))
        }

        fn add_data_key(
            &self,
            ring: RingId,
            kek_id: &str,
            wrapped_key: &[u8],
        ) -> Result<DataKeyRow, StoreError> {
            self.run_tx("keys", |c| keks::add_data_key(c, ring, kek_id, wrapped_key))
        }

        fn keys_to_reseal(
            &self,
            ring: RingId,
            data_key: DataKeyId,
            after: KeyId,
            limit: u32,
        ) -> Result<Vec<SealedKeyRow>, StoreError> {
            self.read(|c| keks::keys_to_reseal(c, ring, data_key, after, limit))
        }

        fn reseal_keys(
            &self,
            ring: RingId,
            keys: &[Resealed],
            actor: &str,
        ) -> Result<u64, StoreError> {
            self.run_tx("rewrap", |c| {
                let ring = $lock_ring(self, c, ring)?;
                keks::reseal_keys(c, &ring, keys, actor)
            })
        }

        fn add_keys(
            &self,
            ring: RingId,
            count: u32,
            if_empty: bool,
            actor: &str,
            make: &mut dyn FnMut(KeyId) -> Result<NewKey, MakeKeyError>,
        ) -> Result<Vec<KeyId>, StoreError> {
            let (added, tick) = self.run_tx("keys", |c| {
                let ring = $lock_ring(self, c, ring)?;
                keys::add_keys(c, &ring, count, if_empty, actor, make)
            })?;
            self.seen.saw(ring, tick);
            Ok(added)
        }

        fn keys(&self, ring: RingId) -> Result<Vec<Key>, StoreError> {
            self.read(|c| keys::keys(c, ring))
        }

        fn sealed_keys(&self, ring: RingId) -> Result<Vec<SealedKeyRow>, StoreError> {
            self.read(|c| keys::sealed_keys(c, ring))
        }

        fn change_keys(
            &self,
            ring: RingId,
            kids: &[Kid],
            change: &KeyChange<'_>,
        ) -> Result<Vec<bool>, StoreError> {
            let (changed, tick) = self.run_tx("keys", |c| {
                if change.force {
                    key_changes::lock_uses(c, kids)?;
                }
                let ring = $lock_ring(self, c, ring)?;
                key_changes::change_keys(c, &ring, kids, change)
            })?;
            self.seen.saw(ring, tick);
            Ok(changed)
        }

        fn due_keys(
            &self,
            ring: RingId,
            retirement: &Retirement,
            limit: u32,
        ) -> Result<Vec<DueKey>, StoreError> {
            self.read(|c| key_changes::due_keys(c, ring, retirement, limit))
        }

        fn replace_keys(
            &self,
            ring: RingId,
            due: &[DueKey],
            actor: &str,
            make: &mut dyn FnMut(KeyId) -> Result<NewKey, MakeKeyError>,
        ) -> Result<u32, StoreError> {
            let (replaced, tick) = self.run_tx("keys", |c| {
                let ring = $lock_ring(self, c, ring)?;
                key_changes::replace_keys(c, &ring, due, actor, make)
            })?;
            self.seen.saw(ring, tick);
            Ok(replaced)
        }

        fn add_records(
            &self,
            ring: RingId,
            records: &[NewRecord],
        ) -> Result<Vec<Added>, StoreError> {
            self.run_tx("intake", |c| intake::add_records(c, ring, records))
        }

        fn record(&self, ring: RingId, id: RecordId) -> Result<Option<StoredRecord>, StoreError> {
            self.read(|c| pickup::record(c, ring, id))
        }

        fn record_id(
            &self,
            ring: RingId,
            external_id: &str,
        ) -> Result<Option<RecordId>, StoreError> {
            self.read(|c| pickup::record_id(c, ring, external_id))
        }

        fn signatures_of(&self, records: &[RecordId]) -> Result<Vec<RecordSignature>, StoreError> {
            self.read(|c| pickup::signatures_of(c, records))
        }

        fn feed(
            &self,
            ring: RingId,
            after: FeedPosition,
            limit: u32,
        ) -> Result<Vec<FeedItem>, StoreError> {
            self.read(|c| pickup::feed(c, ring, after, limit))
        }

        fn stored_ages(
            &self,
            ring: RingId,
            after: Tick,
            limit: u32,
        ) -> Result<Vec<(Tick, Duration)>, StoreError> {
            self.read(|c| pickup::stored_ages(c, ring, &self.node.0, after, limit))
        }

        fn list_keys(
            &self,
            ring: RingId,
            status: Option<KeyStatus>,
            after: KeyId,
            limit: u32,
        ) -> Result<Vec<Key>, StoreError> {
            self.read(|c| lists::keys(c, ring, status, after, limit))
        }

        fn key(&self, kid: &Kid) -> Result<Key, StoreError> {
            self.read(|c| lists::key(c, kid))
        }

        fn key_counts(&self, ring: RingId) -> Result<KeyCounts, StoreError> {
            self.read(|c| lists::key_counts(c, ring))
        }

        fn list_batches(
            &self,
            ring: RingId,
            state: Option<BatchState>,
            after: BatchId,
            limit: u32,
        ) -> Result<Vec<BatchView>, StoreError> {
            self.read(|c| lists::batches(c, ring, state, after, limit))
        }

        fn batch(&self, batch: BatchId) -> Result<BatchView, StoreError> {
            self.read(|c| lists::batch(c, batch))
        }

        fn log_action(&self, action: &AdminAction<'_>) -> Result<(), StoreError> {
            self.run_tx("admin", |c| admin::log(c, action))
        }

        fn admin_log(&self, after: i64, limit: u32) -> Result<Vec<AdminEntry>, StoreError> {
            self.read(|c| admin::entries(c, after, limit))
        }

        fn last_admin_log(&self, before: i64, limit: u32) -> Result<Vec<AdminEntry>, StoreError> {
            self.read(|c| admin::last_entries(c, before, limit))
        }

        fn admin_log_head(&self) -> Result<(i64, String), StoreError> {
            self.read(admin::head)
        }

        fn add_token(&self, token: &NewToken, actor: &str) -> Result<TokenId, StoreError> {
            self.run_tx("admin", |c| admin::add_token(c, token, actor))
        }

        fn tokens(&self) -> Result<Vec<Token>, StoreError> {
            self.read(admin::tokens)
        }

        fn revoke_token(&self, token: TokenId, actor: &str) -> Result<bool, StoreError> {
            self.run_tx("admin", |c| admin::revoke_token(c, token, actor))
        }

        fn touch_tokens(&self, tokens: &[TokenId]) -> Result<(), StoreError> {
            self.run_tx("admin", |c| admin::touch_tokens(c, tokens))
        }

        fn set_paused(&self, ring: RingId, paused: bool, actor: &str) -> Result<bool, StoreError> {
            self.run_tx("admin", |c| {
                let ring = $lock_ring(self, c, ring)?;
                admin::set_paused(c, &ring, paused, actor)
            })
        }

        fn request_drain(&self, actor: &str) -> Result<u64, StoreError> {
            self.run_tx("admin", |c| admin::request_drain(c, actor))
        }

        fn retry_batch(&self, batch: BatchId, actor: &str) -> Result<(), StoreError> {
            self.run_tx("admin", |c| {
                let ring = admin::ring_of_batch(c, batch)?;
                $lock_ring(self, c, ring)?;
                admin::retry_batch(c, batch, actor)
            })
        }

        fn signed_records(
            &self,
            after: Option<RecordId>,
            max_bytes: usize,
            each_bytes: usize,
        ) -> Result<Vec<SignedRecord>, StoreError> {
            self.read_by_index(|c| inspection::signed_records(c, after, max_bytes, each_bytes))
        }

        fn batch_keys(&self, batches: &[BatchId]) -> Result<Vec<BatchKey>, StoreError> {
            self.read(|c| inspection::batch_keys(c, batches))
        }

        fn history(
            &self,
            ring: RingId,
            after: Tick,
            until: Tick,
            limit: u32,
        ) -> Result<Vec<Event>, StoreError> {
            self.read(|c| inspection::history(c, ring, after, until, limit))
        }

        fn batches(&self, after: Option<BatchId>, limit: u32) -> Result<Vec<Batch>, StoreError> {
            self.read(|c| shared::batches(c, after, limit))
        }

        fn signature_count(&self) -> Result<u64, StoreError> {
            self.read(inspection::signature_count)
        }

        fn memberships(
            &self,
            after: Option<RecordId>,
            limit: u32,
        ) -> Result<Vec<Membership>, StoreError> {
            self.read_by_index(|c| inspection::memberships(c, after, limit))
        }

        fn open_uses(&self) -> Result<Vec<OpenUse>, StoreError> {
            self.read(shared::open_uses)
        }
    };
}

pub(super) use shared_methods;
