"""python -m project_nlp_intent.synthetic --out data/nlp --seed 0

Makes up what customers of a shop write, in Korean and English, so that the intent project has data from the first
minute. Reads nothing; writes OUT/{train,val,test}.jsonl, OUT/test.txt (the test texts alone) and
OUT/made_by_synthetic.json (the settings used). The classes share their words (nearly every one speaks of an order), one
text in five has a typo, and val and test have wordings that train has not, and out-of-scope texts, label "oos".
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from common.cli import UserError, command_parser, number, run
from project_nlp_intent.typos import change_case, remove_spacing, typo

SPLITS = ("train", "val", "test")
NOTE = "made_by_synthetic.json"
OOS = "oos"

# {name} is filled from SLOTS; [a|b] is a or b. A line is one pattern, or as many as its brackets give.
PATTERNS = {
    "order_tracking": """
        [where is|where's|any news on|what happened to] my {item}[| order]
        [has|did] my order {number} [shipped|leave|go out] [yet|already|today]
        [when|what day] will [my {item}|order {number}|the package] [arrive|get here|be delivered|come]
        I [ordered|bought] [a {item}|{item}s] {when} and [it is still not here|nothing has come|have heard nothing]
        [track|can you track|please track] [order {number}|my parcel|the {item} I bought]
        the courier [never came|says delivered but nothing is here|has been on the way since {day}]
        is my {item} still [coming {day}|in your warehouse|on its way]
        need the tracking [number|link|code] for [my {item}|order {number}]
        [내|제|저희] {ko_item}[이|가|은|는] [어디까지 왔나요|지금 어디쯤이에요|언제 도착하나요|왜 안 오죠]
        {ko_when} 주문한 {ko_item} [아직도 안 왔어요|언제 와요|출발했나요|배송 중인가요]
        주문번호 {number} [배송 조회|배송 상태 알려|어디 있는지 확인해] [주세요|줘|부탁드려요]
        [송장 번호|운송장|배송 추적 링크] [어디서 봐요|알려 주세요|문자로 보내줘요]
        택배[가|는] [배송 완료라는데|왔다는데] [문 앞에 없어요|못 받았어요|아무것도 없네요]
        {ko_day}까지 {ko_item} [받을 수 있을까요|도착할까요|올까요]
    """,
    "refund": """
        I [want|would like|need] [my money back|a refund] for [the {item}|order {number}]
        [can I|how do I|is it possible to] [return|send back] [the {item}|this {item}] and get [my money|a refund]
        the {item} [is broken|arrived broken|came in the wrong size|does not work], [refund me|money back please]
        when [will|does] the [refund|money] for [order {number}|my {item}] [arrive|show up|come back to my card]
        [returned|sent back] the {item} {when}, [no refund yet|still waiting for the money]
        you [charged|refunded] [me too little|half only] for the {item} I returned
        what is [your|the] [return|refund] policy [for {item}s|on sale items|]
        {ko_item}[을|를|] [환불|반품]하고 싶[어요|은데요|습니다]
        {ko_when} 산 {ko_item}[이|가] [고장 났어요|불량이에요] [환불해 주세요|돈 돌려주세요|반품할게요]
        [환불|반품]은 [언제 처리되나요|며칠 걸려요|어떻게 신청해요]
        반품한 {ko_item} [환불금|돈]이 [아직 안 들어왔어요|언제 들어와요]
        주문 {number} [취소 말고 환불|전액 환불|카드 환불] [부탁드립니다|해 주세요|되나요]
    """,
    "cancel_order": """
        [cancel|please cancel|stop|I want to cancel] [order {number}|my order|the {item} I ordered {when}]
        [can|could] I [still|] cancel [the {item}|what I ordered {when}|it before it ships]
        I [ordered|bought] [the wrong {item}|two {item}s] by mistake, [cancel one|cancel it|take it back out]
        do not [ship|send] [the {item}|order {number}], I [changed my mind|found it cheaper|do not need it any more]
        [how|where] do I cancel [an order|my subscription|a preorder]
        {ko_when} 주문한 {ko_item} [취소할게요|취소해 주세요|취소하고 싶어요]
        [주문|구매] 취소[는 어떻게 하나요|되나요|하려고요]
        {ko_item} [잘못 주문했어요|두 번 주문됐어요|필요 없어졌어요] [취소 부탁해요|주문 취소요|빼 주세요]
        주문번호 {number} [보내지 마세요|취소 처리해 줘요|발송 전에 취소 가능한가요]
    """,
    "change_address": """
        [change|update|correct] the [delivery|shipping] address [of order {number}|for my {item}|]
        [send|ship|deliver] [my {item}|order {number}] to [{place}|my office|another address] instead
        I [moved|am moving] to {place}, [where do I change that|please note it|my order goes to the old flat]
        I [typed|gave] the wrong [street|house number|postcode] [for the {item}|when I ordered {when}]
        can the {item} be [left with a neighbour|delivered to a locker|brought to {place}]
        [배송지|주소|받는 곳][를|을|] [바꿔 주세요|변경하고 싶어요|수정할 수 있나요]
        {ko_item} [회사로|{ko_place}(으)로|새 집으로] 보내 [주세요|줄 수 있나요]
        [이사했어요|주소를 잘못 썼어요] {ko_item} 주문 [주소 수정|배송지 변경] [돼요|부탁드려요|해야 해요]
        [경비실|무인 택배함|{ko_place}]에 [맡겨 주세요|놓아 달라고 전해 주세요]
    """,
    "shop_finding": """
        [where is|how do I get to|what is the address of] [your|the nearest] [shop|store|branch] [in {place}|]
        [is there|do you have] [a shop|a store|a branch] [in|near|around] {place}
        which [shop|store] [near {place}|] [has|sells] [the {item}|{item}s] [in stock|today]
        can I [see|try|pick up] the {item} [in a store|at the shop in {place}]
        [parking|bus stop|subway station] [near|at] your [{place} store|shop]
        {ko_place}[에|쪽에|근처에] 매장 [있나요|있어요|어디 있죠]
        [가까운|제일 가까운] [매장|지점|가게] [위치|어디|찾아줘] [알려 주세요|인가요|요]
        {ko_item} [직접 볼 수 있는|파는|재고 있는] [매장|지점]이 [어디예요|{ko_place}에 있나요]
        {ko_place}점 [가는 길|주차장|약도] [알려줘요|있나요|어떻게 돼요]
    """,
    "opening_hours": """
        [when|what time] do you [open|close] [on {day}|today|]
        [are you|is the {place} store] open [on {day}|today|on holidays|this late]
        [opening|business|store] hours [of the {place} shop|on {day}|please]
        until when can I [call|come by|pick up my {item}] [on {day}|today|]
        [몇 시에|몇 시까지|언제] [문 열어요|문 닫아요|영업해요|해요]
        {ko_day}[에도|에] [영업하나요|문 여나요|쉬나요]
        {ko_place}점 [영업시간|운영 시간|휴무일] [알려 주세요|이 어떻게 되나요|뭐예요]
        [오늘|{ko_day}] 몇 시까지 [가면 {ko_item} 찾을 수 있어요|전화 받아요]
    """,
    "payment_problem": """
        my [card|payment] [was declined|does not go through|keeps failing] [for order {number}|at checkout|]
        I [was charged|paid] twice for [the {item}|order {number}|one {item}]
        [can I|how do I] pay [with {pay}|by {pay}|in instalments]
        [checkout|the payment page] [hangs|shows an error|stays white] when I [buy the {item}|use {pay}]
        why [is there|do I see] [a charge|two charges] from you [of {day}|on my card]
        결제[가|는] [안 돼요|자꾸 실패해요|두 번 됐어요|오류가 나요]
        {ko_pay}[로|으로] [결제할 수 있나요|계산되나요|할부 돼요]
        {ko_item} 값이 [두 번 빠져나갔어요|이중으로 청구됐어요|카드에 두 번 찍혔어요]
        [카드|{ko_pay}] [승인 거절|결제 오류]라고 [떠요|나와요] 주문 {number}
    """,
    "account_login": """
        I [forgot|lost|cannot remember] my [password|user name|login]
        [cannot|can't] [log in|sign in|get into my account] [since {day}|any more|on my phone]
        [change|reset|update] my [password|email|phone number]
        [delete|close] my [account|profile] and [all my data|my old orders]
        the [code|reset mail|login link] [never arrives|is expired|does not work]
        [비밀번호|아이디]를 [잊어버렸어요|까먹었어요|바꾸고 싶어요]
        로그인[이|은] [안 돼요|계속 풀려요|왜 막혔죠]
        [인증 번호|인증 메일|재설정 링크][가|이] [안 와요|만료됐대요]
        [회원 탈퇴|계정 삭제|휴대폰 번호 변경] [하고 싶어요|어떻게 해요|해 주세요]
    """,
    "coupon": """
        [my|the] [coupon|discount code|voucher] [does not work|is rejected|has expired] [for the {item}|]
        [do you have|is there|got] [a coupon|a discount|a student discount|free shipping] [for {item}s|on {day}|]
        how [do I|can I] [use|enter|combine] [a coupon|points|a gift card] [on order {number}|at checkout|]
        I [forgot|was not able] to [enter|use] my [code|voucher] when I ordered [the {item}|{when}]
        [쿠폰|할인 코드|적립금][이|은|을] [적용이 안 돼요|어떻게 써요|언제까지예요|어디 있어요]
        {ko_item} [할인|세일|쿠폰] [하나요|있나요|언제 해요]
        [학생|첫 구매|생일] [할인|쿠폰] [받을 수 있나요|있어요|주세요]
        주문할 때 [쿠폰|포인트] [못 썼어요|깜빡했어요] [지금 적용돼요|돌려받을 수 있나요]
    """,
    "greeting": """
        [hi|hello|hey|good morning|good evening] [there|again|everyone|] [{smile}|]
        [hello|hi], [anyone there|is somebody here|can you help me|nice to meet you]
        [thanks|thank you|great|perfect], [bye|that was all|have a nice {day}|you helped a lot] [{smile}|]
        [good day|howdy|greetings] [to you|from {place}|]
        [안녕하세요|안녕|반갑습니다|좋은 아침이에요|하이] [{smile}|상담원님|여러분|]
        [저기요|여보세요] [계세요|누구 있나요|지금 상담되나요]
        [감사합니다|고마워요|수고하세요] [{smile}|잘 해결됐어요|좋은 하루 보내세요|]
    """,
    "human_agent": """
        [let me|I want to|can I|please let me] [talk|speak] to [a human|a person|an agent|your manager]
        [connect|put] me [through|] to [a real person|someone who can help|customer service]
        [call|phone] me back [on {day}|today|about my {item}]
        you are a [bot|machine], I [need|want] [a human|someone real]
        what is your [phone number|hotline|service number]
        [상담원|사람|직원|매니저][이랑|하고|과] [통화하고|얘기하고|연결하고] 싶어요
        [상담원|담당자] [연결해 주세요|바꿔 주세요|불러 줘요]
        {ko_item} 때문에 [전화 주세요|직접 통화하고 싶어요|사람이랑 말할게요]
        [고객센터|상담] [전화번호|번호] [알려 주세요|뭐예요]
    """,
    OOS: """
        [what is|tell me] the [weather|temperature|forecast] [in {place}|on {day}]
        [who|which team] won the [match|game|election] [on {day}|in {place}]
        [write|sing|recite] me a [poem|song|joke] about [the sea|a cat|autumn]
        how [tall|old|far away] is [the moon|mount everest|the president]
        [what is|how much is] [twelve times nine|the square root of two|seven percent of ninety]
        [how do I|teach me to] [cook rice|play the violin|fix a flat tire|learn spanish]
        my [dog|son|knee] [is ill|will not sleep|hurts], what [should I do|helps]
        [translate|what means] [thank you|good night] in [french|japanese]
        [wake me|set an alarm|remind me] at [six|seven thirty] [on {day}|]
        [play|recommend] [some jazz|a horror film|a good novel]
        [오늘|{ko_day}] [날씨|기온|미세먼지] [어때|알려줘|어떤가요]
        [달|태양|에베레스트]까지 [거리가|높이가] 얼마나 [돼요|되나요]
        [김치찌개|파스타|떡볶이] [어떻게 끓여|만드는 법 알려줘|맛있게 하는 법]
        [재미있는|슬픈] [영화|소설|노래] [추천해 줘|하나 골라 줘]
        [강아지가|아이가|무릎이] [아파요|밥을 안 먹어요] 어떡하죠
        {ko_day}에 [축구|야구] [누가 이겼어|몇 시에 해]
        [일곱 시에 깨워 줘|알람 맞춰 줘|노래 틀어 줘]
    """,
}
SLOTS = {
    "item": "jacket shirt lamp phone keyboard kettle backpack watch tent blender chair monitor bicycle pillow camera",
    "number": "4711 20931 88 1204 556677 31337 902 7765 10010 43",
    "when": "yesterday|last week|on monday|two weeks ago|this morning|a month ago|last friday|three days ago",
    "day": "monday tuesday wednesday thursday friday saturday sunday tomorrow",
    "place": "seoul busan berlin paris london incheon oxford dublin gangnam hamburg york",
    "pay": "paypal|apple pay|a gift card|bank transfer|visa|samsung pay|cash",
    "smile": "🙂 😀 👋 :) 🙏 ❤️ ^^ !!",
    "ko_item": "재킷 셔츠 스탠드 휴대폰 키보드 주전자 배낭 시계 텐트 믹서기 의자 모니터 자전거 베개 카메라 운동화",
    "ko_when": "어제|지난주에|월요일에|2주 전에|오늘 아침에|한 달 전에|저번 금요일에|사흘 전에",
    "ko_day": "월요일 화요일 수요일 목요일 금요일 토요일 일요일 내일 추석 모레",
    "ko_place": "서울 부산 대구 인천 강남 홍대 제주 수원 광주 대전",
    "ko_pay": "카카오페이 네이버페이 계좌이체 상품권 삼성페이 휴대폰",
}
OPENINGS = ["", "", "", "hi, ", "please ", "sorry, ", "um ", "quick question: "]
KO_OPENINGS = ["", "", "", "저기요 ", "혹시 ", "죄송한데 ", "급해요 ", "문의드려요 "]
ENDINGS = ["", "", "", "?", "!", " ...", " thanks", " asap"]
KO_ENDINGS = ["", "", "", "?", "!", "...", " ㅠㅠ", " 부탁드려요"]


def say(pattern: str, rng: np.random.Generator, every: bool) -> str:
    """One text of a pattern; unless `every`, without the last wording of brackets that have three or more."""
    while found := re.search(r"\[([^\[\]]*)\]", pattern):
        ways = found[1].split("|")
        ways = ways if every or len(ways) < 3 else ways[:-1]
        pattern = pattern[: found.start()] + str(rng.choice(ways)) + pattern[found.end() :]
    for name in re.findall(r"\{(\w+)\}", pattern):
        words = SLOTS[name].split("|" if "|" in SLOTS[name] else None)
        pattern = pattern.replace(f"{{{name}}}", str(rng.choice(words)), 1)
    return " ".join(pattern.split())


def make_text(label: str, rng: np.random.Generator, every: bool) -> str:
    """What one customer writes: a pattern, perhaps with an opening, an ending, and a slip of the fingers."""
    text = say(str(rng.choice([line.strip() for line in PATTERNS[label].strip().splitlines()])), rng, every)
    korean = bool(re.search("[가-힣]", text))
    text = rng.choice(KO_OPENINGS if korean else OPENINGS) + text + rng.choice(KO_ENDINGS if korean else ENDINGS)
    slip = rng.random()
    if slip < 0.2:
        text = typo(text, rng)
    elif slip < 0.25 and korean:
        text = remove_spacing(text, rng)
    elif slip < 0.35:
        text = change_case(text, rng)
    return text


def make_texts(out: Path, seed: int, counts: dict[str, int], oos: int, force: bool = False) -> int:
    """Write the files; {split: texts a class}, and `oos` out-of-scope texts in val and test. Returns how many.

    No text comes twice, in any split. Raises UserError where `out` holds something else and `force` is not given.
    """
    note = out / NOTE
    if out.exists() and any(out.iterdir()) and not note.exists() and not force:
        raise UserError(f"{out}: not empty, and not made by this command; pass another --out, or --force")
    out.mkdir(parents=True, exist_ok=True)
    rng, seen = np.random.default_rng(seed), set()
    made = 0
    for split in SPLITS:
        sizes = {label: oos if label == OOS else counts[split] for label in PATTERNS}
        sizes[OOS] *= split != "train"
        labels = [label for label, n in sizes.items() for _ in range(n)]
        rows = [{"text": fresh(label, rng, seen, split != "train"), "label": label} for label in labels]
        rows = [rows[i] for i in rng.permutation(len(rows))]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (out / f"{split}.jsonl").write_text(lines, encoding="utf-8")
        made += len(rows)
    (out / "test.txt").write_text("".join(row["text"] + "\n" for row in rows), encoding="utf-8")
    note.write_text(json.dumps({"seed": seed, **counts, "oos": oos}) + "\n")
    return made


def fresh(label: str, rng: np.random.Generator, seen: set[str], every: bool) -> str:
    """A text that is not in `seen`, which it joins; after a hundred tries with a number to it."""
    for attempt in range(1000):
        text = make_text(label, rng, every) + (f" {rng.integers(1000)}" if attempt > 100 else "")
        if text.casefold() not in seen:
            seen.add(text.casefold())
            return text
    raise UserError(f"{label}: no new text in 1000 tries; ask for fewer")


def main(argv: list[str] | None = None) -> None:
    """The command; see the module's docstring."""
    parser = command_parser(__doc__)
    add = parser.add_argument
    add("--out", default="data/nlp", help="folder to write into")
    add("--seed", type=number(int, 0), default=0, help="same seed, same texts")
    for split, n in zip(SPLITS, (150, 30, 60), strict=True):
        add(f"--{split}", type=number(int, 1, 5000), default=n, help=f"{split} texts a class")
    add("--oos", type=number(int, 0, 5000), default=60, help="out-of-scope texts in val and in test")
    add("--force", action="store_true", help="write into a folder that holds something else")
    args = parser.parse_args(argv)
    counts = {split: getattr(args, split) for split in SPLITS}
    made = make_texts(Path(args.out), args.seed, counts, args.oos, args.force)
    print(f"made {made} texts of {len(PATTERNS) - 1} classes → {args.out}")
    print(f"next: python -m project_nlp_intent.train --train_jsonl {args.out}/train.jsonl")


if __name__ == "__main__":
    run(main)
