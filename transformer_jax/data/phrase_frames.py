"""Whole sentences around the generated phrases, for the languages that have them.

Frame n of one language translates frame n of another. "{slot}" is filled with a phrase; "[words]1" is aligned
with the other language's "[words]1".
"""

import re

FRAMES: dict[str, tuple[str, ...]] = {
    "en": (
        "[The train]1 [leaves]2 [at]3 {time}.",
        "[The ticket]1 [costs]2 {currency}.",
        "[She]1 [speaks]2 {languages}.",
        "[The package]1 [weighs]2 {mass}.",
        "[The road]1 [is]2 {length} [long]3.",
        "[The meeting]1 [is]2 [on]3 {day} [at]4 {time}.",
        "[The shop]1 [opened]2 {past}.",
        "[The course]1 [begins]2 {future}.",
        "[The number]1 [is]2 {cardinal}.",
        "[The house]1 [was built]2 [in]3 {year}.",
        "[The countries]1 [are]2 {countries}.",
    ),
    "de": (
        "[Der Zug]1 [fährt]2 [um]3 {time} Uhr [ab]2.",
        "[Das Ticket]1 [kostet]2 {currency}.",
        "[Sie]1 [spricht]2 {languages}.",
        "[Das Paket]1 [wiegt]2 {mass}.",
        "[Die Straße]1 [ist]2 {length} [lang]3.",
        "[Die Sitzung]1 [ist]2 [am]3 {day} [um]4 {time} Uhr.",
        "[Der Laden]1 [hat]2 {past} [geöffnet]2.",
        "[Der Kurs]1 [beginnt]2 {future}.",
        "[Die Zahl]1 [lautet]2 {cardinal}.",
        "[Das Haus]1 [wurde]2 [im Jahr]3 {year} [gebaut]2.",
        "[Die Länder]1 [sind]2 {countries}.",
    ),
    "fr": (
        "[Le train]1 [part]2 [à]3 {time}.",
        "[Le billet]1 [coûte]2 {currency}.",
        "[Elle]1 [parle]2 {languages}.",
        "[Le colis]1 [pèse]2 {mass}.",
        "[La route]1 [mesure]2 {length} [de long]3.",
        "[La réunion]1 [est]2 [le]3 {day} [à]4 {time}.",
        "[Le magasin]1 [a ouvert]2 {past}.",
        "[Le cours]1 [commence]2 {future}.",
        "[Le nombre]1 [est]2 {cardinal}.",
        "[La maison]1 [a été construite]2 [en]3 {year}.",
        "[Les pays]1 [sont]2 {countries}.",
    ),
}

PIECES = re.compile(r"\[([^\]]+)\](\d)|\{(\w+)\}")
