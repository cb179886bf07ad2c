// The page in real Chromium: an order is placed, its states are seen, the PDF link works; with the
// mailer killed the confirmation is as fast and the page says that the e-mail waits.
// Usage: node page_test.mjs SCREENSHOT_FOLDER
import {strict as assert} from "node:assert";
import {spawn} from "node:child_process";
import {mkdtempSync, openSync, rmSync} from "node:fs";
import {createServer} from "node:net";
import {tmpdir} from "node:os";
import {join} from "node:path";
import {chromium} from "playwright-core";

const screenshots = process.argv[2];
const dray = join(process.env.DRAY_BIN, "dray");
const config = process.env.DRAY_SHOP_CONFIG;
const folder = mkdtempSync(join(tmpdir(), "dray-"));
const port = await new Promise(resolve => {
  const probe = createServer().listen(0, "127.0.0.1", () => {
    const {port} = probe.address();
    probe.close(() => resolve(port));
  });
});
const environment = {...process.env, DRAY_DATA: folder, DRAY_SHOP_LISTEN: `127.0.0.1:${port}`,
                     DRAY_SHOP_DELIVER: `maildir:${folder}/mail`};
const log = openSync(join(folder, "log"), "a");
const children = [];
function start(...apps) {
  const words = ["run", config, ...apps.flatMap(app => ["--app", app])];
  const child = spawn(dray, words, {env: environment, stdio: ["ignore", log, log]});
  child.ended = new Promise(resolve => child.on("exit", resolve));
  children.push(child);
  return child;
}

const address = `http://127.0.0.1:${port}/`;
async function waitOpen() {
  for (const deadline = Date.now() + 20000; Date.now() < deadline;) {
    try { if ((await fetch(address)).ok) return; } catch { /* not yet */ }
    await new Promise(resolve => setTimeout(resolve, 20));
  }
  throw new Error("the shop did not open");
}

let browser;
let code = 1;
try {
  start("order", "view", "invoice");
  const mailer = start("email");
  await waitOpen();
  browser = await chromium.launch({executablePath: "/usr/bin/chromium", args: [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update"]});
  const page = await browser.newPage({viewport: {width: 1200, height: 900}});
  const faults = [];
  page.on("pageerror", fault => faults.push(String(fault)));
  page.on("console", message => { if (message.type() === "error") faults.push(message.text()); });
  await page.goto(address);

  async function placeOrder(name) {
    await page.click("[data-product=lantern]");
    await page.click("[data-product=rope]");
    await page.fill("#name", name);
    await page.fill("#email", "visitor@example.org");
    const before = await page.locator(".order").count();
    await page.click("#place");
    await page.locator(".order").nth(before).waitFor();
    return page.locator(".order").first();
  }
  const first = await placeOrder("Łukasz 山田太郎");
  await first.locator("[data-step=accepted].good").waitFor();
  await first.locator("[data-step=mail].good").waitFor();
  await first.locator("[data-step=invoice].good").waitFor();
  assert.match(await first.locator("[data-step=mail]").innerText(), /E-mail sent to visitor@example.org/);
  const link = await first.locator("[data-step=invoice] a").getAttribute("href");
  const pdf = await page.request.get(new URL(link, address).href);
  assert.equal(pdf.headers()["content-type"], "application/pdf");
  assert.equal((await pdf.body()).subarray(0, 5).toString(), "%PDF-");

  mailer.kill("SIGKILL");
  await mailer.ended;
  const second = await placeOrder("Jane");
  await second.locator("[data-step=accepted].good").waitFor();
  await second.locator("[data-step=invoice].good").waitFor();
  assert.equal(await second.locator("[data-step=mail]").innerText(), "E-mail waits to be sent");
  await page.screenshot({path: join(screenshots, "shop-mail-waits.png"), fullPage: true});
  start("email");
  await second.locator("[data-step=mail].good").waitFor({timeout: 40000});
  await page.screenshot({path: join(screenshots, "shop.png"), fullPage: true});

  // A wrong address: the shop's words reach the visitor.
  await page.click("[data-product=crate]");
  await page.fill("#email", "nobody");
  await page.click("#place");
  await page.locator("#error", {hasText: "e-mail address"}).waitFor();
  assert.deepEqual(faults.filter(fault => !fault.includes("422")), []);
  console.log("the page works");
  code = 0;
} finally {
  await browser?.close();
  for (const child of children) child.kill("SIGTERM");
  await Promise.all(children.map(child => child.ended));
  rmSync(folder, {recursive: true, force: true});
}
process.exit(code);
