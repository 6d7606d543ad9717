"""What was measured of a claim, as text: the value with its unit and spread, and the run that it comes from."""

from __future__ import annotations

from harness.report.claims.claim_rows import AS_THE_RUN_FINDS, CORRECTED, NOT_MEASURABLE, ClaimRow, MeasuredReading
from harness.report.formatting import decimal, memory, number, percent, plain
from harness.report.json_values import as_float, as_mapping

LONGEST_TEXT = 90  # characters of a sampled text
DIGITS = 5  # of a measured value: 10.978 is not 10.98


def measured_text(claim: ClaimRow) -> str:
    """Return every reading of a claim, or what is missing for one."""
    if not claim.readings:
        return claim.message if claim.verdict != "skip" else f"missing: {claim.message}"
    return "; ".join(filter(None, (reading_text(reading) for reading in claim.readings)))


def reading_text(reading: MeasuredReading) -> str:
    """Return a reading: `10.97 [10.94, 11.01] nats over 4 batches of 128 random tokens`."""
    text = value_text(reading)
    if over := reading.spread.get("over"):
        text += f" over {plain(over)}"
    if sample := reading.details.get("text"):
        text += f" at a loss of {number(reading.details.get('loss'))}: “{plain(sample, longest=LONGEST_TEXT)}”"
    if reading.setting:
        text = f"with {reading.setting}: {text}"
    if reading.by:
        text += f" (by {reading.by})"
    if origin := reading.origin:
        text += f" ({plain(origin.get('file') or '')}, {plain(origin.get('machine') or '', longest=80)})"
    return text


def value_text(reading: MeasuredReading) -> str:
    """Return the value with its unit and the interval of its spread."""
    value, unit = reading.value, reading.unit
    if isinstance(value, dict):
        return places_text(value, unit)
    low, high = (as_float(reading.spread.get(key)) for key in ("low", "high"))
    interval = f" [{short(low, unit)}, {short(high, unit)}]" if low is not None and high is not None else ""
    if unit == "bytes" and isinstance(value, int):
        return f"{number(value)} bytes ({memory(value)}){interval}"
    return f"{short(value, unit)}{interval} {unit}".strip()


def short(value: object, unit: str) -> str:
    """Return a value: a share in percent, a large or whole number with commas, another one at four digits."""
    found = as_float(value)
    if found is None:
        return number(value)
    if unit.startswith("of the"):
        return percent(found)
    if found.is_integer() and abs(found) >= 1000:
        return number(int(found))
    return decimal(found, DIGITS) if isinstance(value, float) else number(value)


def places_text(values: dict[str, object], unit: str) -> str:
    """Return the values of several places: each of a few, the ends of many, one for all if they are equal."""
    after = f" {unit}" if unit else ""
    texts = {place: short(value, unit) for place, value in values.items()}
    if len(set(texts.values())) == 1 and len(texts) > 1:
        return f"{next(iter(texts.values()))}{after} in all {len(texts)} places"
    if len(texts) <= 3:
        return ", ".join(f"{plain(place)}: {text}" for place, text in texts.items()) + after
    numbers = [found for value in values.values() if (found := as_float(value)) is not None]
    if len(numbers) == len(values):
        return f"{short(min(numbers), unit)} to {short(max(numbers), unit)}{after} in {len(values)} places"
    counts = {text: list(texts.values()).count(text) for text in texts.values()}
    return ", ".join(f"{text} in {count}" for text, count in counts.items()) + " places"


def finding_text(claim: ClaimRow) -> str:
    """Return the finding, with the size of a run's model, the correction, the setting, or what the ledger says else."""
    if not claim.finding:
        return f"no finding: {claim.verdict}"
    text = claim.finding
    if parameters := claim.deciding and as_mapping(claim.deciding.details.get("about")).get("parameters"):
        text += f" at {number(parameters)} parameters"
    if claim.finding == CORRECTED:
        text += f": {corrected_text(claim)}"
    if claim.readings and claim.deciding is not None and claim.deciding.setting:
        text += f": {claim.deciding.setting}"
    if contradicts(claim):
        text += f" (the ledger says: {claim.ledger})"
    return text


def corrected_text(claim: ClaimRow) -> str:
    """Return the corrected figure: `10.978`, without the tolerance of the measurement."""
    expected = as_mapping(claim.expected.get("corrected"))
    value = as_float(as_mapping(expected.get("close_to")).get("value"))
    return plain(claim.expected_text.get("corrected") or "") if value is None else short(value, "")


def contradicts(claim: ClaimRow) -> bool:
    """Return True if the measurement finds otherwise than the ledger says."""
    return claim.finding not in ("", NOT_MEASURABLE, claim.ledger) and claim.ledger != AS_THE_RUN_FINDS
