// Runs before the page is drawn, so that a remembered theme does not flash in the other one first.
"use strict";
try {
  const theme = localStorage.getItem("folio.theme");
  if (theme) document.documentElement.dataset.theme = theme;
} catch {
  // Storage may be forbidden; the page then follows the system.
}
