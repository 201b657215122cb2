"""The Spotlight page in a real browser: by mouse, by keyboard, by what a screen reader is told."""

import json
import re

import pytest

from tests import browser as browsers
from tests.analysis.made_reports import made_example, made_report
from transformer_jax.analysis.spotlight.page import render

pytestmark = pytest.mark.xdist_group("browser")
HOSTILE = "</script><img src=x onerror=alert(1)> <b>bold</b>"
LONG = " ".join(f"word{i}" for i in range(59))


@pytest.fixture(scope="module")
def small():
    return made_example("A dog runs", "Ein Hund läuft")


@pytest.fixture
def show(chromium, tmp_path):
    """Opens the page of some examples; whatever a test does with it, the browser must have nothing to complain of."""

    def open_report(*examples):
        (tmp_path / "page.html").write_text(render(made_report(*examples)), encoding="utf8")
        browsers.open_page(chromium, tmp_path / "page.html")
        return chromium

    yield open_report
    assert browsers.complaints(chromium) == []


def find(driver, selector):
    return driver.find_elements("css selector", selector)


def text(driver, selector):
    return driver.execute_script("return document.querySelector(arguments[0]).textContent", selector)


def focused(driver):
    return driver.switch_to.active_element.text.split("\n")[0]


def press(driver, *keys):
    from selenium.webdriver import ActionChains

    for key in keys:
        ActionChains(driver).send_keys(key).perform()


def hover(driver, element):
    from selenium.webdriver import ActionChains

    ActionChains(driver).move_to_element(element).perform()


def values(driver, row):
    """The numbers below the tokens of a row; 0 where there is none."""
    script = "return [...document.querySelectorAll(arguments[0])].map((one) => one.firstChild?.data ?? '')"
    return [int(v or 0) for v in driver.execute_script(script, f"[aria-labelledby={row}] .value")]


def expected(weights):
    return [int(100 * round(255 * float(w)) / 255 + 0.5) for w in weights]


def wait_until(driver, condition):
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(driver, 20, poll_frequency=0.05).until(lambda _: condition())


def test_hovering_a_token_shows_where_each_head_looks(show, small):
    driver, cross = show(small), small.views[2].weights
    assert values(driver, "keys") == expected(cross[1, 0, 0])
    before = driver.execute_script("return document.querySelector('.head-charts svg').outerHTML")
    hover(driver, find(driver, "[aria-labelledby=queries] button")[1])
    wait_until(driver, lambda: values(driver, "keys") == expected(cross[1, 0, 1]))
    chart = "return document.querySelector('.head-charts svg').outerHTML"
    wait_until(driver, lambda: driver.execute_script(chart) != before)
    assert "Hund" in text(driver, ".summary")
    hover(driver, find(driver, "[aria-labelledby=keys] button")[3])  # the other way round: who looks at it
    wait_until(driver, lambda: values(driver, "queries") == expected(cross[1, 0, :, 3]))
    find(driver, ".head-choices input")[2].click()
    hover(driver, find(driver, "h1")[0])
    wait_until(driver, lambda: values(driver, "keys") == expected(cross[0, 2, 0]))
    find(driver, ".mix input")[2].click()
    wait_until(driver, lambda: sum(values(driver, "keys")) in range(97, 104))


def test_all_of_it_works_from_the_keyboard(show, small):
    from selenium.webdriver.common.keys import Keys

    driver = show(small)
    press(driver, Keys.TAB)
    assert focused(driver) == "Skip attention"
    press(driver, Keys.TAB)
    assert focused(driver) == "The cross"
    press(driver, Keys.ARROW_LEFT)
    assert (focused(driver), text(driver, "#queries")) == ("The decoder", "Output looks from")
    assert text(driver, "#keys").startswith("Output so far")
    press(driver, Keys.HOME, Keys.TAB)
    assert driver.switch_to.active_element.get_attribute("aria-pressed") == "true"
    press(driver, Keys.TAB)
    wait_until(driver, lambda: values(driver, "keys") == expected(small.views[0].weights[1, 0, 1]))
    press(driver, Keys.ARROW_RIGHT)
    wait_until(driver, lambda: values(driver, "keys") == expected(small.views[0].weights[1, 0, 2]))
    # A screen reader is told, once the reader has stopped moving.
    wait_until(driver, lambda: "Layer 1, head 0: " in text(driver, "#attention-panel [role=status]"))
    outline = driver.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    driver.execute_script("document.querySelector('.head-choices input:checked').focus()")
    press(driver, Keys.ARROW_UP, Keys.ARROW_RIGHT)
    label = driver.switch_to.active_element.get_attribute("aria-label")
    assert label.startswith(f"Layer 0, head 1, importance {small.views[0].importance[0, 1]:.2g}: ")
    wait_until(driver, lambda: values(driver, "keys") == expected(small.views[0].weights[0, 1, 2]))
    driver.execute_script("document.querySelector('.lens [tabindex=\"0\"]').focus()")
    press(driver, Keys.ARROW_UP, Keys.ARROW_RIGHT)
    assert re.match(r"layer 0, .\u2068Hund\u2069.: ", text(driver, "[aria-labelledby=lens-title] .summary"))
    driver.execute_script("document.querySelector('.beams [tabindex=\"0\"]').focus()")
    press(driver, Keys.ARROW_DOWN, Keys.ARROW_RIGHT)
    assert driver.switch_to.active_element.get_attribute("data-at") == "1,1"


def test_every_control_and_picture_has_a_name(show, small):
    names = show(small, made_example("Hi", "Hallo")).execute_script("""
      const named = (one) => one.ariaLabel || one.title || one.textContent.trim() || one.labels?.[0]?.textContent.trim()
        || document.getElementById(one.getAttribute("aria-labelledby"))?.textContent;
      return [...document.querySelectorAll("button, input, select, [role]:not([role=status]), svg:not([aria-hidden])")]
        .filter((one) => !named(one)).map((one) => one.outerHTML);""")
    assert names == []


def test_output_and_its_alternatives(show, small):
    driver = show(small)
    rows = [row.text for row in find(driver, ".bars tbody tr")]
    assert len(rows) == 5
    assert "taken" in rows[0]
    find(driver, "[aria-labelledby=likeliest] button")[2].click()
    wait_until(driver, lambda: "läuft" in text(driver, ".bars caption"))
    # Choosing a token of the output chooses it everywhere.
    assert "läuft" in text(driver, ".summary")
    assert [mark.text for mark in find(driver, "mark")] == ["▁else"]
    find(driver, ".importance button")[1].click()
    wait_until(driver, lambda: find(driver, "[role=tab]")[0].get_attribute("aria-selected") == "true")
    assert text(driver, ".summary").startswith("Layer 0, head 1: ")


def test_texts_are_chosen_and_shown_as_they_are(show, small):
    driver = show(small, made_example(HOSTILE, "رجل يقرأ كتابا"), made_example("Hi", "這是"))
    script = (
        "const one = document.querySelector('select'); one.value = arguments[0]; one.dispatchEvent(new Event('change'))"
    )
    driver.execute_script(script, 1)
    wait_until(driver, lambda: text(driver, ".texts dd") == HOSTILE)
    assert not find(driver, "#page img, #page b:not(.summary b)")
    row = find(driver, "[aria-labelledby=queries]")[0]
    assert row.get_attribute("dir") == "rtl"
    places = [button.rect["x"] for button in find(driver, "[aria-labelledby=queries] button")]
    assert places == sorted(places, reverse=True)
    driver.execute_script(script, 2)
    wait_until(driver, lambda: [p.text for p in find(driver, "[aria-labelledby=queries] .piece")] == ["▁這是", "</s>"])


def test_parts_that_a_family_lacks_are_absent(show, small):
    alone = made_example("A dog", "Ein Hund")
    fields = {**vars(alone), "views": alone.views[:1], "hypotheses": (), "beams": (), "candidates": None, "lens": None}
    driver = show(type(alone)(**fields))
    assert [h2.text for h2 in find(driver, "h2")] == ["Attention", "Importance of heads"]
    assert not find(driver, "[role=tablist]")
    without_attention = show(type(alone)(**{**vars(alone), "views": ()}))
    assert [h2.text for h2 in find(without_attention, "h2")] == ["What else it might have said", "Logit lens"]


def test_sixty_tokens_six_layers_eight_heads(show):
    """Bounds far above what is measured, so that only a page that does too much fails on a busy machine."""
    driver = show(made_example(LONG, LONG, layers=6, heads=8))
    assert len(driver.page_source) < 3_000_000
    took = driver.execute_async_script("""
      const done = arguments[0], charts = document.querySelector(".head-charts"), times = [];
      const next = ([button, ...rest]) => {
        if (!button) return done(times.sort((a, b) => a - b)[times.length >> 1]);
        const begin = performance.now();
        new MutationObserver((_, observer) => {
          observer.disconnect();
          requestAnimationFrame(() => setTimeout(() => (times.push(performance.now() - begin), next(rest))));
        }).observe(charts.querySelector("div"), { childList: true });
        button.dispatchEvent(new MouseEvent("mouseenter"));
      };
      next([...document.querySelectorAll("[aria-labelledby=queries] button")].slice(1, 21));""")
    assert took < 500
    driver.set_window_size(420, 800)
    try:
        assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    finally:
        driver.set_window_size(1300, 900)


def test_dark_pages_keep_their_contrast(show, small):
    driver = show(small)
    for scheme in ("light", "dark"):
        features = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", features)
        colours = driver.execute_script("""
          const of = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
          const names = ["surface", "raised", "text", "faint", "accent", "focus"];
          return Object.fromEntries(names.map((one) => [one, of(one)]))""")
        strongest = [
            0.62 * a + 0.38 * b for a, b in zip(*map(rgb, (colours["accent"], colours["surface"])), strict=True)
        ]
        for ground in (rgb(colours["surface"]), rgb(colours["raised"])):
            assert contrast(rgb(colours["faint"]), ground) >= 4.5
            assert contrast(rgb(colours["focus"]), ground) >= 3
        assert contrast(rgb(colours["text"]), strongest) >= 4.5, json.dumps(colours)
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def rgb(colour):
    return [int(part, 16) / 255 for part in re.findall("[0-9a-f]{2}", colour)]


def contrast(a, b):
    """WCAG 2.2's ratio of two sRGB colours."""
    light = lambda c: c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
    luminance = lambda rgb: sum(f * light(c) for f, c in zip((0.2126, 0.7152, 0.0722), rgb, strict=True))
    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)
