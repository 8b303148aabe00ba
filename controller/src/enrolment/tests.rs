use super::*;

const NOW: WallMs = WallMs(1_000_000_000);
const GRACE: Duration = Duration::from_secs(100);

fn key() -> PublicKey {
    PublicKey::of_pair(&rcgen::KeyPair::generate().expect("a key"))
}

fn id() -> SpiffeId {
    SpiffeId::parse("spiffe://fleet.example/agent/web-1").expect("an id")
}

fn token() -> (TokenRow, TokenSecret) {
    let secret = TokenSecret([9; 32]);
    let row = TokenRow {
        secret_hash: hash(&secret),
        expires_ms: NOW.0 + 1,
        ..TokenRow::default()
    };
    (row, secret)
}

#[test]
fn a_token_gives_an_identity_until_it_runs_out() {
    let (row, secret) = token();
    assert_eq!(
        judge_token(Some(&row), &secret, &key(), NOW),
        Ok(TokenVerdict::Fresh)
    );
    let late = WallMs(NOW.0 + 1);
    assert_eq!(
        judge_token(Some(&row), &secret, &key(), late),
        Err(Refusal::TokenExpired)
    );
}

#[test]
fn a_token_that_is_not_known_and_one_with_another_secret_are_refused_alike() {
    let (row, _) = token();
    let wrong = TokenSecret([8; 32]);
    assert_eq!(
        judge_token(Some(&row), &wrong, &key(), NOW),
        Err(Refusal::TokenUnknown)
    );
    assert_eq!(judge_token(None, &wrong, &key(), NOW), Err(Refusal::TokenUnknown));
}

#[test]
fn a_used_token_gives_the_same_identity_to_the_same_key_only() {
    let (mut row, secret) = token();
    let first = key();
    row.used_by = id().to_string();
    row.used_key_hash = first.hash().to_vec();
    assert_eq!(
        judge_token(Some(&row), &secret, &first, NOW),
        Ok(TokenVerdict::Again(id()))
    );
    assert_eq!(
        judge_token(Some(&row), &secret, &key(), NOW),
        Err(Refusal::TokenUsed)
    );
    let late = WallMs(NOW.0 + 1);
    assert_eq!(
        judge_token(Some(&row), &secret, &first, late),
        Err(Refusal::TokenUsed)
    );
    row.revoked = true;
    assert_eq!(
        judge_token(Some(&row), &secret, &first, NOW),
        Err(Refusal::TokenRevoked)
    );
}

fn svid(key: &PublicKey, not_after: i64) -> SvidFacts {
    SvidFacts {
        id: id(),
        serial: vec![7],
        not_before: 0,
        not_after,
        public_key: key.der().to_vec(),
    }
}

fn identity() -> IdentityRow {
    IdentityRow {
        serials: vec![vec![6], vec![7]],
        ..IdentityRow::default()
    }
}

#[test]
fn an_svid_comes_back_within_the_grace_and_waits_for_approval_beyond_it() {
    let key = key();
    let svid = svid(&key, NOW.seconds());
    let judge = |row: &IdentityRow, now| judge_recovery(Some(row), &svid, &key, &[], GRACE, now);
    let mut row = identity();
    assert_eq!(judge(&row, NOW.plus(GRACE)), Ok(Recovery::Granted));
    let late = NOW.plus(GRACE + Duration::from_millis(1));
    assert_eq!(judge(&row, late), Ok(Recovery::Awaits));
    row.approved = true;
    assert_eq!(judge(&row, late), Ok(Recovery::Granted));
    row.revoked_ms = 1;
    assert_eq!(judge(&row, late), Err(Refusal::Revoked(id())));
}

#[test]
fn an_svid_comes_back_for_its_own_key_and_when_it_is_one_of_the_last() {
    let own = key();
    let svid = svid(&own, NOW.seconds());
    let row = identity();
    let other = judge_recovery(Some(&row), &svid, &key(), &[], GRACE, NOW);
    assert_eq!(other, Err(Refusal::OtherKey));
    let gone = IdentityRow {
        serials: vec![vec![1]],
        ..identity()
    };
    let old = judge_recovery(Some(&gone), &svid, &own, &[], GRACE, NOW);
    assert_eq!(old, Err(Refusal::OldKey));
    let unknown = judge_recovery(None, &svid, &own, &[], GRACE, NOW);
    assert_eq!(unknown, Err(Refusal::Unknown(id())));
}

#[test]
fn an_svid_that_a_restore_has_lost_comes_back_and_none_from_before_or_after() {
    let key = key();
    let (backup, restore) = (NOW.seconds() - 1_000, NOW.seconds() - 500);
    let lost = [Lost {
        from_ms: backup * 1_000 + 1,
        to_ms: restore * 1_000 + 999,
    }];
    let issued = |at: i64| SvidFacts {
        serial: vec![9],
        not_before: at - BACKDATED.as_secs().cast_signed(),
        ..svid(&key, NOW.seconds())
    };
    let judge = |row: Option<&IdentityRow>, at, key: &PublicKey, now| {
        judge_recovery(row, &issued(at), key, &lost, GRACE, now)
    };
    let row = identity();
    for at in [backup, backup + 1, restore] {
        assert_eq!(judge(Some(&row), at, &key, NOW), Ok(Recovery::Granted), "{at}");
    }
    for at in [backup - 1, restore + 1] {
        assert_eq!(judge(Some(&row), at, &key, NOW), Err(Refusal::OldKey), "{at}");
    }
    // All else is asked as ever.
    let other = judge(Some(&row), backup, &self::key(), NOW);
    assert_eq!(other, Err(Refusal::OtherKey));
    let unknown = judge(None, backup, &key, NOW);
    assert_eq!(unknown, Err(Refusal::Unknown(id())));
    let late = NOW.plus(GRACE + Duration::from_millis(1));
    assert_eq!(judge(Some(&row), backup, &key, late), Ok(Recovery::Awaits));
    let revoked = IdentityRow {
        revoked_ms: 1,
        ..identity()
    };
    let judged = judge(Some(&revoked), backup, &key, NOW);
    assert_eq!(judged, Err(Refusal::Revoked(id())));
}

#[test]
fn an_operator_who_comes_too_late_is_told_what_helps_and_waits_for_nobody() {
    let key = key();
    let operator = SpiffeId::parse("spiffe://fleet.example/operator/bob").expect("an id");
    let svid = SvidFacts {
        id: operator.clone(),
        ..svid(&key, NOW.seconds())
    };
    let judge = |now| judge_recovery(Some(&identity()), &svid, &key, &[], GRACE, now);
    assert_eq!(judge(NOW.plus(GRACE)), Ok(Recovery::Granted));
    let refused = judge(NOW.plus(GRACE + Duration::from_millis(1)));
    let refused = refused.expect_err("nobody approves an operator");
    assert_eq!(refused, Refusal::AwaitingApproval(operator));
    let told = refused.to_string();
    assert!(
        told.contains("`flowtilla-controller token --operator bob`"),
        "{told}"
    );
    assert!(!told.contains("approve"), "{told}");
    let agents = Refusal::AwaitingApproval(id()).to_string();
    assert!(agents.ends_with("run `agentctl approve web-1`"), "{agents}");
}

#[test]
fn every_mistake_of_a_token_order_is_told() {
    let order = TokenOrder {
        labels: [("a b".to_owned(), "x\n".to_owned())].into(),
        life: Some(Duration::ZERO),
        operator: "-".into(),
    };
    let mistakes = order.check().expect_err("all of it is wrong");
    let paths: Vec<&str> = mistakes.iter().map(|mistake| mistake.path.as_str()).collect();
    assert_eq!(
        paths,
        ["ttl", "operator", "operator", "labels[a b]", "labels[a b]"]
    );
    let good = TokenOrder {
        labels: [("site/rack".to_owned(), String::new())].into(),
        ..TokenOrder::default()
    };
    assert_eq!(good.check().expect("a good order").life, TOKEN_LIFE_DEFAULT);
    // What the fleet does not read would leave the agent without any label.
    for (key, value) in [("-a", "b"), ("a", "b-"), ("a/", ""), ("a", "b/c"), ("", "b")] {
        let order = TokenOrder {
            labels: [(key.to_owned(), value.to_owned())].into(),
            ..TokenOrder::default()
        };
        assert!(order.check().is_err(), "{key}={value}");
    }
}
