// What the page uses of its libraries; the bundle leaves out the rest.
export { barY, cell, plot, rect, ruleY } from "@observablehq/plot";
export { default as htm } from "htm";
export { h, render } from "preact";
export { useEffect, useMemo, useRef, useState } from "preact/hooks";
