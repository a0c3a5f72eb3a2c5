create table datasets (
    dataset varchar not null,
    source varchar not null,
    settings json not null,
    fingerprint varchar not null,
    created_at timestamp not null
);

create table items (
    dataset varchar not null,
    item_id varchar not null,
    title varchar,
    categories varchar[] not null,
    brand varchar,
    description varchar
);

create table interactions (
    dataset varchar not null,
    user_id varchar not null,
    item_id varchar not null,
    position integer not null,
    timestamp timestamp,
    rating float,
    split varchar not null
);

create table sid_versions (
    dataset varchar not null,
    sid_version varchar not null,
    method varchar not null,
    settings json not null,
    items integer not null,
    distinct_ids integer not null,
    uniqueness double not null,
    created_at timestamp not null
);

create table semantic_ids (
    dataset varchar not null,
    sid_version varchar not null,
    item_id varchar not null,
    codes usmallint[] not null,
    text varchar not null
);

create table candidate_lists (
    list_id varchar not null,
    dataset varchar not null,
    split varchar not null,
    user_id varchar not null,
    position integer not null,
    history varchar[] not null,
    target_item_id varchar not null,
    item_ids varchar[] not null,
    scores float[] not null,
    target_rank integer,
    pre_ranker varchar not null,
    fold integer
);

create table evidence (
    list_id varchar not null,
    rank integer not null,
    item_id varchar not null,
    score float not null,
    last_weight float not null,
    links struct(item_id varchar, "after" integer, "before" integer)[] not null,
    shared_category varchar[] not null,
    shared_category_items integer not null,
    same_brand_items integer not null,
    popularity integer not null
);

create table optimal_rankings (
    list_id varchar not null,
    item_ids varchar[] not null,
    probabilities float[] not null
);

create table templates (
    template varchar not null,
    sha256 varchar not null,
    text varchar not null
);

create table prompts (
    prompt_id varchar not null,
    list_id varchar not null,
    dataset varchar not null,
    sid_version varchar not null,
    template varchar not null,
    template_sha256 varchar not null,
    strategy varchar not null,
    knowledge_priming boolean not null,
    messages json not null
);

create table traces (
    trace_id varchar not null,
    prompt_id varchar not null,
    run_id varchar not null,
    teacher varchar not null,
    model varchar not null,
    temperature double not null,
    max_tokens integer not null,
    sample_index integer not null,
    completion varchar,
    reasoning varchar,
    ranking varchar[],
    finish_reason varchar,
    prompt_tokens integer,
    completion_tokens integer,
    cost_usd double,
    latency_ms double,
    error varchar,
    created_at timestamp not null
);

create table verdicts (
    trace_id varchar not null,
    rule varchar not null,
    rule_version integer not null,
    passed boolean not null,
    reason varchar,
    detail varchar
);

create table journals (
    run_id varchar not null,
    absorbed_bytes bigint not null
);

create table snapshots (
    name varchar not null,
    version varchar not null,
    kind varchar not null,
    rows bigint not null,
    path varchar not null,
    manifest json not null,
    created_at timestamp not null
);

create table runs (
    run_id varchar not null,
    kind varchar not null,
    dataset varchar,
    settings json not null,
    status varchar not null,
    started_at timestamp not null,
    ended_at timestamp
);

create table evaluations (
    run_id varchar not null,
    dataset varchar not null,
    split varchar not null,
    ranker varchar not null,
    metric varchar not null,
    value double not null,
    low double,
    high double,
    n bigint not null
);
