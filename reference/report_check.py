"""Check a report of folio in headless Chromium.

    python report_check.py REPORT.html [SCREENSHOT.png]

Fails if the console shows an error, if the page makes any request, or if a figure is not drawn. Hovers over a curve,
zooms in, and sorts the table of a sweep. Needs Chromium and its driver from Debian.
"""

import json
import sys
from pathlib import Path

from selenium import webdriver
from selenium.webdriver import ActionChains
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

ARGUMENTS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
ARGUMENTS += ["--window-size=1200,1400", "--force-prefers-reduced-motion"]


def open_page(page: Path) -> webdriver.Chrome:
    options = webdriver.ChromeOptions()
    for argument in ARGUMENTS:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service("/usr/bin/chromedriver"))
    driver.set_page_load_timeout(60)
    driver.get(page.resolve().as_uri())
    return driver


def requests_of(driver: webdriver.Chrome) -> list[str]:
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]


def check_figures(driver: webdriver.Chrome) -> int:
    """Check that every figure has marks, and that one responds to hovering and zooming."""
    wait = WebDriverWait(driver, 20)
    plots = driver.find_elements(By.CSS_SELECTOR, ".plot")
    marks = ".scatterlayer .trace path, .gl-container canvas"
    for plot in plots:
        wait.until(lambda _: plot.find_elements(By.CSS_SELECTOR, marks), f"{plot.get_attribute('id')} is empty")
    loss = driver.find_element(By.ID, "figure-loss")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", loss)
    area = loss.find_element(By.CSS_SELECTOR, ".nsewdrag")
    ActionChains(driver).move_to_element(area).perform()
    points = "const d = document.getElementById('figure-loss'); Plotly.Fx.hover(d, [{curveNumber: 1, pointNumber: 0}])"
    driver.execute_script(points)
    wait.until(lambda _: loss.find_elements(By.CSS_SELECTOR, ".hoverlayer .hovertext"), "no hover text")
    shown = "return document.getElementById('figure-loss')._fullLayout.xaxis.range"
    before = driver.execute_script(shown)
    drag = ActionChains(driver).move_to_element_with_offset(area, -100, 0).click_and_hold()
    drag.move_by_offset(200, 0).release().perform()
    wait.until(lambda _: driver.execute_script(shown) != before, "no zoom")
    after = driver.execute_script(shown)
    assert after[1] - after[0] < before[1] - before[0], f"zoomed from {before} to {after}"
    # Restore the view for the screenshot.
    driver.execute_script(f"Plotly.relayout('figure-loss', {{'xaxis.autorange': true, 'yaxis.autorange': true}})")
    return len(plots)


def check_table(driver: webdriver.Chrome) -> None:
    """Check that clicking a column header sorts by that column."""
    for table in driver.find_elements(By.CSS_SELECTOR, "table.sortable"):
        button = table.find_elements(By.CSS_SELECTOR, "th button")[0]
        column = lambda: [cell.text for cell in table.find_elements(By.CSS_SELECTOR, "tbody td:first-child")]
        ranks = column()
        driver.execute_script("arguments[0].click(); arguments[0].click()", button)
        assert column() == ranks[::-1], f"{ranks} became {column()}"
        driver.execute_script("arguments[0].click()", button)


def main() -> None:
    page = Path(sys.argv[1])
    driver = open_page(page)
    try:
        figures = check_figures(driver)
        check_table(driver)
        errors = [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
        assert not errors, errors
        own = page.resolve().as_uri()
        asked = {url for url in requests_of(driver) if url != own and not url.startswith("data:")}
        assert not asked, f"unexpected requests: {asked}"
        if len(sys.argv) > 2:
            driver.execute_script("window.scrollTo(0, 0)")
            driver.save_screenshot(sys.argv[2])
        print(f"{page}: {figures} figures drawn; hover and zoom work; no error in the console; no other requests")
    finally:
        driver.quit()


if __name__ == "__main__":
    main()
