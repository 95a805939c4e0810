"""The page in a headless browser: a question, a drawn picture, a redrawn one, an error, and no request to another host."""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import shutil
import socket
import urllib.parse
from pathlib import Path
from unittest.mock import Mock, call

import pytest

from megaunigame.errors import ConfigError
from megaunigame.inference import web
from megaunigame.inference.model import Answer
from megaunigame.inference.settings import AnswerSettings, DrawSettings
from tests.multi_process.launcher import free_port
from tests.refusals import refused

BROWSER, DRIVER = (
    next(filter(None, map(shutil.which, names)), None) for names in (("chromium", "google-chrome"), ("chromedriver",))
)
MISSING = [name for name in ("gradio", "selenium") if importlib.util.find_spec(name) is None]
MISSING += [name for name, found in (("chromium", BROWSER), ("chromedriver", DRIVER)) if found is None]
needs_browser = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
PICTURES = os.environ.get("MEGAUNIGAME_PAGE_PICTURES")
"""Folder for screenshots, to be looked at."""


@pytest.fixture(scope="module")
def address(tiny):
    port = free_port()
    page = web.serve(tiny, AnswerSettings(max_tokens=8), DrawSettings(guidance=5.0), host="127.0.0.1", port=port, wait=False)
    yield f"http://127.0.0.1:{port}"
    page.close()


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1400,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.implicitly_wait(10)
    yield driver
    driver.quit()


def save(browser, name: str) -> None:
    if PICTURES:
        for width in (1400, 400):
            browser.set_window_size(width, 1000)
            Path(PICTURES, f"{name}-{width}.png").write_bytes(base64.b64decode(browser.get_screenshot_as_base64()))
        browser.set_window_size(1400, 1000)


def until(browser, holds):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 20, poll_frequency=0.1).until(holds)


@needs_browser
@pytest.mark.timeout(120)
def test_the_page_asks_draws_and_redraws(address, browser, tiny, scenes):
    from selenium.webdriver.common.by import By

    def find(selector: str):
        return browser.find_element(By.CSS_SELECTOR, selector)

    def said() -> list[str]:
        return [element.text.strip() for element in browser.find_elements(By.CSS_SELECTOR, "#talk .bot .md")]

    def tab(name: str) -> None:
        browser.find_element(By.XPATH, f"//button[@role='tab' and normalize-space()='{name}']").click()

    browser.get(address)
    question = "how many objects are there ?"
    find("#about input[type=file]").send_keys(str(scenes[0].picture))
    until(browser, lambda b: find("#about img").get_attribute("src"))
    find("#question textarea").send_keys(question)
    find("#ask").click()
    expected = tiny.ask(scenes[0].picture, question, max_tokens=8)
    until(browser, lambda b: said()[-1:] == [expected])
    save(browser, "ask")

    seen, written = [], "![a](http://elsewhere.test/a.png) <img src='http://elsewhere.test/b.png'> 1 < 2 & **3**"

    def answer(questions, settings):
        seen.append(questions[0].earlier)
        return [Answer(written, cut=False)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "answer", answer)
        for turn in (1, 2):
            until(browser, lambda b: not find("#question textarea").get_attribute("value"))
            find("#question textarea").send_keys("is 1 < 2 ?")
            find("#ask").click()
            until(browser, lambda b, turn=turn: said()[1:] == [written] * turn)
    assert seen == [[(question, expected)], [(question, expected), ("is 1 < 2 ?", written)]]

    tab("Draw")
    find("#prompt textarea").send_keys("a red cube left of a blue ball .")
    find("#draw").click()
    drawn = until(browser, lambda b: find("#drawn img").get_attribute("src"))
    assert urllib.parse.urlsplit(drawn).path.endswith(".png")
    size = browser.execute_script("const i = document.querySelector('#drawn img'); return [i.naturalWidth, i.naturalHeight]")
    assert size == [64, 64]
    save(browser, "draw")

    tab("Redraw")
    find("#redraw").click()
    until(browser, lambda b: "Choose a picture first." in find("body").text)
    find("#source input[type=file]").send_keys(str(scenes[1].picture))
    until(browser, lambda b: find("#source img").get_attribute("src"))
    find("#redraw").click()
    until(browser, lambda b: find("#redrawn img").get_attribute("src"))
    save(browser, "redraw")

    assert not browser.find_elements(By.CSS_SELECTOR, "button[aria-label='Share'], button[title='Share']")
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    hosts = {urllib.parse.urlsplit(url).hostname for url in urls if url.startswith(("http", "ws"))}
    assert len(urls) > 10 and hosts == {"127.0.0.1"}, hosts


@pytest.mark.skipif("gradio" in MISSING, reason="not installed: gradio")
def test_a_port_that_is_taken_is_said(tiny):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="Type another --port"):
            web.serve(tiny, AnswerSettings(), DrawSettings(), host="127.0.0.1", port=taken.getsockname()[1], wait=False)


def test_without_gradio_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(web, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'megaunigame\[web\]'"):
        web.check_gradio()


def test_a_port_is_tried_before_the_model_loads():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with refused(f"cannot be opened at 127.0.0.1:{port}", "Type another --port, or another --host."):
            web.check_port("127.0.0.1", port)
    web.check_port("127.0.0.1", port)
    for wrong in (0, -1, 65536):
        with refused(f"--port must be a number from 1 to 65535; got {wrong}."):
            web.check_port("127.0.0.1", wrong)


def test_cleared_fields_of_a_drawing_have_their_defaults():
    model, draws = Mock(), DrawSettings(guidance=5.0, seed=3)
    web.draw_typed(model, draws, " a cube ", None, None, None, None)
    web.draw_typed(model, draws, "a cube", 2, 1, 0, 0)
    assert model.draw.call_args_list == [
        call("a cube", count=1, guidance=5.0, temperature=1.0, seed=3),
        call("a cube", count=2, guidance=1.0, temperature=0.0, seed=0),
    ]
    with refused("Type a text first."):
        web.draw_typed(model, draws, " \n", 1, 1, 1, 1)
