"""What cards say in English and in Korean, by key: `say("ko", "metrics")`.

Names of metrics, flags, classes and files are the same in both.
"""

from __future__ import annotations

WORDS = {
    "model card": ("Model card", "모델 카드"),
    "data card": ("Data card", "데이터 카드"),
    "intended": ("Intended use", "사용 목적"),
    "out of scope": ("Not meant for", "사용하지 말아야 할 곳"),
    "limits": ("Limits", "한계"),
    "contact": ("Contact", "연락처"),
    "data": ("Data", "데이터"),
    "version": ("Version", "버전"),
    "checks": ("Checks of the data", "데이터 점검"),
    "source": ("Source", "출처"),
    "licence": ("Licence", "라이선스"),
    "training": ("Training", "학습"),
    "command": ("Command", "명령"),
    "metrics": ("Metrics", "성능 지표"),
    "metric": ("metric", "지표"),
    "value": ("value", "값"),
    "interval": ("95 % interval", "95 % 구간"),
    "chosen": ("Best epoch, on validation", "가장 좋은 에폭 (검증)"),
    "slices": ("Slices", "부분 집합별 성능"),
    "slices text": (
        "The weakest first; {n} examples or more; intervals by bootstrap.",
        "약한 것부터, 예제 {n}개 이상, 구간은 부트스트랩.",
    ),
    "slice": ("slice", "부분 집합"),
    "examples": ("examples", "예제 수"),
    "calibration": ("Calibration", "확률 보정"),
    "robustness": ("Robustness", "강건성"),
    "monitoring": ("Monitoring", "모니터링"),
    "monitoring text": ("Alarms of {file}:", "{file}의 경보:"),
    "alarm name": ("alarm", "경보"),
    "alarm threshold": ("threshold", "임계값"),
    "alarm min_samples": ("samples", "표본 수"),
    "alarm consecutive": ("in a row", "연속"),
    "alarm severity": ("severity", "심각도"),
    "alarm runbook": ("what to do", "대응"),
    "deployment": ("Deployment", "배포"),
    "stages": ("Canary stages, percent of requests", "카나리 단계 (요청 비율 %)"),
    "each": ("{n} requests in each", "단계마다 요청 {n}개"),
    "guardrails": ("Guardrails", "가드레일"),
    "rollback": ("Back to the release before", "이전 릴리스로 되돌리기"),
    "provenance": ("Provenance", "이력"),
    "reproduce": ("How to reproduce", "재현 방법"),
    "this folder": ("with the folder of this card", "FOLDER는 이 카드가 있는 폴더"),
    "counts": ("Counts", "개수"),
    "class": ("class", "클래스"),
    "compare": ("What changed since", "이후 바뀐 내용"),
    "more": ("and {n} more", "외 {n}개"),
    "none": ("none", "없음"),
    "missing": (
        "**Missing: {what}.** {next}",
        "**빠진 정보: {what}.** {next}",
    ),
    "write it": (
        'Write it to card.toml as `{key} = "…"`, and generate the card again.',
        'card.toml에 `{key} = "…"` 로 적고 카드를 다시 만드세요.',
    ),
    "evaluate": (
        "Evaluate (`python -m {package}.eval`, flags by `--help`), and generate the card again.",
        "평가한 뒤(`python -m {package}.eval`, 플래그는 `--help`) 카드를 다시 만드세요.",
    ),
    "not measured": ("Not measured.", "측정하지 않았습니다."),
}
LANGUAGES = ("en", "ko")


def say(lang: str, words: str, **values: object) -> str:
    """The words of a key in a language, with what belongs into their braces."""
    return WORDS[words][LANGUAGES.index(lang)].format(**values)
