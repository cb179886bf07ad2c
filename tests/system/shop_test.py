"""The shop as its visitors and operators meet it, with real processes."""
import glob
import json
import os
import signal
import socket
import subprocess
import threading
import unittest

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult

from support import DRAY, Shop, free_port, order_body, wait_until


class ShopCase(unittest.TestCase):
    def shop(self, *apps, **options):
        shop = Shop(**options)
        self.addCleanup(shop.stop)
        shop.start(*apps)
        shop.wait_open()
        return shop


class BadRequests(ShopCase):
    @classmethod
    def setUpClass(cls):
        cls.open = Shop()
        cls.open.start("order", "view")
        cls.open.wait_open()

    @classmethod
    def tearDownClass(cls):
        cls.open.stop()

    def refused(self, body, status, headers=None):
        got, answer, sent = self.open.request("POST", "/orders", body, headers)
        self.assertEqual(got, status, answer)
        self.assertEqual(sent["Content-Type"], "application/problem+json")
        problem = json.loads(answer)
        self.assertEqual(problem["status"], status)
        self.assertTrue(problem["title"] and problem["detail"])
        return problem["detail"]

    def test_wrong_bodies_get_a_problem_that_names_the_field(self):
        self.assertIn("no JSON", self.refused("{broken", 422))
        self.assertIn("JSON object", self.refused([], 422))
        self.assertIn("customer", self.refused({}, 422))
        self.assertIn("lines[0].quantity", self.refused(order_body(quantity=0), 422))
        self.assertIn("lines[0].quantity", self.refused(order_body(quantity=10**9), 422))
        self.assertIn("unicorn", self.refused(order_body(product="unicorn"), 422))
        self.assertIn("control", self.refused(order_body(name="a\x07b"), 422))
        self.assertIn("control", self.refused(order_body(email="a@b.c\nBcc: d@e.f"), 422))
        self.assertIn("Idempotency-Key", self.refused(order_body(), 400, {"Idempotency-Key": "é"}))
        self.assertIn("json", self.refused("x", 415, {"Content-Type": "text/plain"}))

    def test_a_body_over_1_mib_is_refused(self):
        self.assertIn("1048576", self.refused("x" * (1024 * 1024 + 1), 413))

    def test_strange_paths_and_methods(self):
        for method, path, status in [("GET", "/orders", 405), ("GET", "/nothing", 404),
                                     ("GET", "/orders/0000-0000-0000-0000", 404),
                                     ("GET", "/orders/../../etc/passwd", 404),
                                     ("GET", "/orders/%00", 404), ("DELETE", "/orders/x", 404),
                                     ("GET", "/orders/0000-0000-0000-0000/invoice.pdf", 404)]:
            with self.subTest(path=path):
                self.assertEqual(self.open.request(method, path)[0], status)

    def raw(self, data, then_read=True):
        connection = socket.create_connection(("127.0.0.1", self.open.port), timeout=20)
        self.addCleanup(connection.close)
        connection.sendall(data)
        return connection.recv(4096) if then_read else connection

    def test_what_is_no_http_gets_400(self):
        self.assertIn(b" 400 ", self.raw(b"\x16\x03\x01\x02\x00 garbage \r\n\r\n"))
        self.assertIn(b" 431 ", self.raw(b"GET / HTTP/1.1\r\nX: " + b"y" * 20000 + b"\r\n\r\n"))

    def test_a_request_whose_end_is_in_doubt_is_refused_and_nothing_behind_it_is_read(self):
        behind = b"GET /catalogue HTTP/1.1\r\nHost: x\r\n\r\n"
        for fields in (b"Transfer-Encoding: gzip", b"Transfer-Encoding: xchunked",
                       b"Transfer-Encoding: chunked, identity",
                       b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
                       b"Content-Length: 5\r\nTransfer-Encoding: xchunked",
                       b"Content-Length: 5\r\nTransfer-Encoding: chunked"):
            with self.subTest(fields=fields):
                connection = self.raw(b"POST /orders HTTP/1.1\r\nHost: x\r\n" + fields + b"\r\n\r\n"
                                      + behind, False)
                answer = b""
                while piece := connection.recv(4096):
                    answer += piece
                self.assertIn(b" 400 ", answer)
                self.assertNotIn(b" 200 ", answer)

    def test_who_asks_whether_to_go_on_is_told(self):
        body = json.dumps(order_body()).encode()
        connection = self.raw(b"POST /orders HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
                              b"Content-Type: Application/JSON; charset=utf-8\r\n"
                              b"Content-Length: %d\r\n\r\n" % len(body), False)
        self.assertIn(b"100 Continue", connection.recv(4096))
        connection.sendall(body)
        self.assertIn(b" 202 ", connection.recv(4096))
        self.assertIn("json", self.refused("x", 415, {"Content-Type": "application/jsonx"}))

    def test_half_a_request_is_closed_and_nobody_else_notices(self):
        half = self.raw(b"POST /orders HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{", False)
        self.open.order()
        self.assertEqual(half.recv(4096), b"")   # after the read time-out

    def test_2000_idle_connections_do_not_keep_orders_out(self):
        idle = []
        for _ in range(2000):
            idle.append(socket.create_connection(("127.0.0.1", self.open.port), timeout=5))
        try:
            self.open.order()
        finally:
            for connection in idle:
                connection.close()

    def test_a_repeated_key_is_the_same_order_and_another_order_under_it_is_refused(self):
        answers = [self.open.request("POST", "/orders", order_body(), {"Idempotency-Key": "same"})
                   for _ in range(3)]
        self.assertEqual([answer[0] for answer in answers], [202] * 3)
        bodies = [json.loads(answer[1]) for answer in answers]
        self.assertEqual(len({body["order_id"] for body in bodies}), 1)
        self.assertEqual([body["duplicate"] for body in bodies], [False, True, True])
        self.assertEqual(bodies[0]["durability"], "disk")
        self.refused(order_body(quantity=3), 422, {"Idempotency-Key": "same"})


class Orders(ShopCase):
    def test_an_order_gets_its_mail_its_invoice_and_its_events(self):
        shop = self.shop()
        order = shop.order(name="Łukasz 山田太郎")
        wait_until(lambda: shop.state(order)["invoice"]["state"] == "ready" and
                   shop.state(order)["mail"]["state"] == "sent", "mail and invoice")
        status, pdf, headers = shop.request("GET", f"/orders/{order}/invoice.pdf")
        self.assertEqual((status, headers["Content-Type"]), (200, "application/pdf"))
        path = os.path.join(shop.folder, "one.pdf")
        with open(path, "wb") as file:
            file.write(pdf)
        text = subprocess.run(["pdftotext", "-layout", path, "-"], capture_output=True, text=True,
                              check=True).stdout
        for expected in ["Łukasz 山田太郎", order, "INV-000001", "49.00 EUR", "9.31 EUR",
                         "58.31 EUR", "Tax 19 %", "jane@example.org"]:
            self.assertIn(expected, text)
        fonts = subprocess.run(["pdffonts", path], capture_output=True, text=True, check=True)
        self.assertIn("CJK", fonts.stdout)
        connection = socket.create_connection(("127.0.0.1", shop.port), timeout=20)
        self.addCleanup(connection.close)
        connection.sendall(f"GET /orders/{order}/events HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        received = b""
        while b"event: state" not in received:
            received += connection.recv(4096)
        self.assertIn(b"text/event-stream", received)

    def test_a_killed_mailer_delays_the_mail_but_not_the_confirmation(self):
        shop = self.shop("order", "view", "invoice")
        mailer = shop.start("email")
        first = shop.order()
        wait_until(lambda: shop.state(first)["mail"]["state"] == "sent", "the first mail")
        mailer.send_signal(signal.SIGKILL)
        mailer.wait()
        second = shop.order()
        wait_until(lambda: shop.state(second)["invoice"]["state"] == "ready", "the invoice")
        self.assertEqual(shop.state(second)["mail"]["state"], "waiting")
        shop.start("email")
        wait_until(lambda: shop.state(second)["mail"]["state"] == "sent", "the second mail")

    def test_a_restarted_shop_remembers_orders_and_their_keys(self):
        shop = self.shop("order", "view")
        key = {"Idempotency-Key": "k"}
        first = json.loads(shop.request("POST", "/orders", order_body(), key)[1])
        launcher = shop.launchers.pop()
        launcher.send_signal(signal.SIGKILL)   # its children die with it
        launcher.wait()
        shop.start("order", "view")
        shop.wait_open()
        again = json.loads(shop.request("POST", "/orders", order_body(), key)[1])
        self.assertEqual(again["order_id"], first["order_id"])
        self.assertTrue(again["duplicate"])


class RecordingServer:
    """An SMTP server that answers as told."""

    def __init__(self, answers, **options):
        self.answers = list(answers)
        self.messages = []
        self.senders = []      # answers to MAIL FROM, as long as there are any
        self.controller = Controller(self, hostname="127.0.0.1", port=free_port(), **options)
        self.controller.start()

    async def handle_MAIL(self, _server, _session, envelope, address, options):
        if self.senders:
            return self.senders.pop(0)
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 OK"

    async def handle_DATA(self, server, _session, envelope):
        self.messages.append(envelope.content)
        if self.answers and self.answers[0] is None:     # it has the mail, and nobody hears of it
            self.answers.pop(0)
            server.transport.abort()
            return "250 OK"
        return self.answers.pop(0) if self.answers else "250 OK"


class Mail(ShopCase):
    def mailer(self, answers, if_unknown="again"):
        server = RecordingServer(answers)
        self.addCleanup(server.controller.stop)
        shop = Shop(deliver=f"smtp://127.0.0.1:{server.controller.port}")
        self.addCleanup(shop.stop)
        with open(shop.config, encoding="utf-8") as file:
            text = file.read()
        shop.config = os.path.join(shop.folder, "mail.toml")
        with open(shop.config, "w", encoding="utf-8") as file:
            file.write(text.replace("settings = { deliver =",
                                    f'settings = {{ if_unknown = "{if_unknown}", deliver ='))
        shop.start("order", "view", "email")
        shop.wait_open()
        return server, shop

    def test_a_mail_whose_answer_is_lost_goes_again(self):
        server, shop = self.mailer([None])
        shop.order()
        wait_until(lambda: shop.group("email")["done"] == 1, "the mail")
        self.assertEqual(len(server.messages), 2)

    def test_a_mail_whose_answer_is_lost_waits_for_a_decision_if_so_configured(self):
        server, shop = self.mailer([None], if_unknown="ask")
        order = shop.order()
        wait_until(lambda: shop.group("email")["dead"] == 1, "it asks")
        listed = json.loads(shop.dray("dead", "list", shop.config, "email", "--json"))["dead"][0]
        self.assertIn("needs a decision: step 'send'", listed["reason"])
        sequence = str(listed["sequence"])
        self.assertIn("step       send: began", shop.dray("dead", "show", shop.config, "email", sequence))
        self.assertIn("step send began", shop.dray("show", shop.config, sequence))
        self.assertIn("undecided: send", shop.dray("dead", "decide", shop.config, "email", sequence, "sent",
                                                   "--done", code=1))
        shop.dray("dead", "decide", shop.config, "email", sequence, "send", code=2)
        self.assertIn("no JSON", shop.dray("dead", "decide", shop.config, "email", sequence, "send",
                                           "--done", "{", code=2))
        self.assertIn("is done", shop.dray("dead", "decide", shop.config, "email", sequence, "send", "--done"))
        wait_until(lambda: shop.state(order)["mail"]["state"] == "sent", "the order says so")
        self.assertEqual(len(server.messages), 1)
        self.assertEqual(shop.group("email")["dead"], 0)

    def test_a_password_waits_for_tls(self):
        asked = []

        class Authenticator:
            def __call__(self, _server, _session, _envelope, _mechanism, data):
                asked.append(data)
                return AuthResult(success=True)
        server = RecordingServer([], auth_require_tls=False, authenticator=Authenticator())
        self.addCleanup(server.controller.stop)
        for more, told in (("", 0), (", require_tls = false", 1)):
            with self.subTest(settings=more):
                shop = Shop(deliver=f"smtp://127.0.0.1:{server.controller.port}")
                self.addCleanup(shop.stop)
                with open(f"{shop.folder}/password", "w", encoding="utf-8") as file:
                    file.write("hunter2\n")
                with open(shop.config, encoding="utf-8") as file:
                    text = file.read()
                shop.config = os.path.join(shop.folder, "mail.toml")
                with open(shop.config, "w", encoding="utf-8") as file:
                    file.write(text.replace(
                        "settings = { deliver =", f'settings = {{ user = "shop", password_file = '
                        f'"{shop.folder}/password"{more}, deliver ='))
                shop.start("order", "view", "email")
                shop.wait_open()
                shop.order()
                if told:
                    wait_until(lambda shop=shop: shop.group("email")["done"] == 1, "the mail")
                else:
                    wait_until(lambda shop=shop: shop.group("email")["delayed"] == 1, "it is tried again")
                self.assertEqual(len(asked), told)
                self.assertEqual(len(server.messages), told)

    def test_4xx_is_tried_again_under_the_same_message_id(self):
        server, shop = self.mailer(["451 try later"])
        order = shop.order(name="Zoë")
        wait_until(lambda: shop.state(order)["mail"]["state"] == "sent", "the mail")
        self.assertEqual(len(server.messages), 2)
        ids = {line for message in server.messages for line in message.split(b"\r\n")
               if line.lower().startswith(b"message-id:")}
        self.assertEqual(len(ids), 1)

    def test_a_refusal_that_is_about_the_shop_is_tried_again(self):
        server, shop = self.mailer([])
        server.senders = ["530 authenticate first", "550 you are blocked"]
        shop.order()
        wait_until(lambda: shop.group("email")["done"] == 1, "the mail")
        self.assertEqual(shop.group("email")["dead"], 0)
        self.assertEqual((server.senders, len(server.messages)), ([], 1))

    def test_5xx_is_a_dead_letter_that_can_be_given_another_chance(self):
        server, shop = self.mailer(["550-5.1.1 no such user\r\n550 in this house"])
        order = shop.order()
        wait_until(lambda: shop.group("email")["dead"] == 1, "the dead letter")
        listed = json.loads(shop.dray("dead", "list", shop.config, "email", "--json"))["dead"][0]
        self.assertEqual(listed["reason"], "smtp 550: 5.1.1 no such user in this house")
        self.assertEqual(listed["body"]["order_id"], order)
        self.assertIn("550", shop.dray("dead", "list", shop.config, "email"))
        self.assertIn("no dead letter", shop.dray("dead", "retry", shop.config, "email", "999999",
                                                  code=1))
        shop.dray("dead", "retry", shop.config, "email", str(listed["sequence"]))
        wait_until(lambda: shop.group("email")["done"] == 1, "the mail")
        self.assertEqual(len(server.messages), 2)
        self.assertIn("0 dropped", shop.dray("dead", "drop", shop.config, "email", "--all"))


class Operators(ShopCase):
    def test_a_port_in_use_is_said_with_the_port(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            shop = Shop()
            self.addCleanup(shop.stop)
            port = taken.getsockname()[1]
            shop.environment["DRAY_SHOP_LISTEN"] = f"127.0.0.1:{port}"
            shop.start("order").wait(30)
            self.assertIn(f"127.0.0.1:{port}: port in use", shop.log())

    def test_a_full_spool_answers_503_and_says_when_to_come_back(self):
        shop = Shop()
        self.addCleanup(shop.stop)
        with open(shop.config, encoding="utf-8") as file:
            text = file.read()
        shop.config = os.path.join(shop.folder, "small.toml")
        with open(shop.config, "w", encoding="utf-8") as file:
            file.write(text.replace('max_size   = "2GiB"', 'max_size   = "256MiB"'))
        shop.start("order")
        shop.wait_open()
        # 15 MiB messages fill what is left but the reserve of 32 MiB.
        body = json.dumps({"x": "y" * (15 << 20)})
        path = f"{shop.folder}/orders/admin.sock"
        for number in range(20):
            result = subprocess.run(
                ["curl", "-s", "--unix-socket", path, "-d", "@-", "http://x/v0/publish"],
                input=f'{{"topic": "order.placed", "body": {body}}}', capture_output=True,
                text=True, check=True)
            if "max_size" in result.stdout:
                break
        self.assertIn("max_size", result.stdout)
        self.assertGreater(number, 10)
        # Small orders still fit into the slack of the last big one; they run out too.
        def full():
            status, answer, headers = shop.request("POST", "/orders",
                                                   order_body(name="n" * 200))
            return status == 503 and (answer, headers)
        threads = [threading.Thread(target=lambda: [full() for _ in range(2000)])
                   for _ in range(8)]
        for _ in range(10):
            if full():
                break
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            threads = [threading.Thread(target=lambda: [full() for _ in range(2000)])
                       for _ in range(8)]
        answer, headers = full()
        self.assertEqual(headers["Retry-After"], "5")
        self.assertIn("takes no orders", json.loads(answer)["detail"])

    def test_publish_and_status_from_the_command_line(self):
        shop = self.shop("order")
        receipt = json.loads(shop.dray("publish", shop.config, "order.placed", '{"order_id": "x"}',
                                       "--dedup", "d"))
        self.assertEqual(receipt["durability"], "disk")
        self.assertIn("no group of this spool takes topic 'no.such'",
                      shop.dray("publish", shop.config, "no.such", "1", code=2))
        self.assertIn("no JSON", shop.dray("publish", shop.config, "order.placed", "{", code=2))
        self.assertIn("email", shop.dray("status", f"{shop.folder}/orders"))
        self.assertIn("no spool is here", shop.dray("status", shop.folder, code=1))
        text = subprocess.run(["curl", "-s", "--unix-socket", f"{shop.folder}/orders/admin.sock",
                               "http://x/metrics"], capture_output=True, text=True, check=True)
        self.assertIn('dray_group_messages{group="email",state="pending"', text.stdout)
        for name in ["admin.sock", "dray.sock"]:
            self.assertEqual(os.stat(f"{shop.folder}/orders/{name}").st_mode & 0o777, 0o600)

    def test_run_spool_serves_a_spool_without_its_producer(self):
        shop = self.shop("order")
        order = shop.order()
        owner = shop.launchers.pop()
        owner.send_signal(signal.SIGTERM)
        self.assertEqual(owner.wait(30), 0)
        with open(shop.log_path, "ab") as log:
            shop.launchers.append(subprocess.Popen([DRAY, "run", "--spool", f"{shop.folder}/orders"],
                                                   stdout=log, stderr=log))
        shop.start("email")
        wait_until(lambda: glob.glob(f"{shop.folder}/mail/new/*"), "the mail")
        with open(glob.glob(f"{shop.folder}/mail/new/*")[0], encoding="utf-8") as mail:
            self.assertIn(order, mail.read())

    def test_a_second_owner_of_a_spool_is_refused(self):
        shop = self.shop("order")
        shop.environment["DRAY_SHOP_LISTEN"] = f"127.0.0.1:{free_port()}"
        second = shop.start("order")
        self.assertEqual(second.wait(30), 1)
        self.assertIn("in use by another process", shop.log())

    def test_the_launcher_brings_a_killed_app_back_and_stops_in_order(self):
        shop = self.shop()
        pids = subprocess.run(["pgrep", "-P", str(shop.launchers[0].pid), "-f", "app email"],
                              capture_output=True, text=True, check=True).stdout.split()
        os.kill(int(pids[0]), signal.SIGKILL)
        wait_until(lambda: shop.log().count("started app=email") == 2, "the restart")
        order = shop.order()
        wait_until(lambda: shop.state(order)["mail"]["state"] == "sent", "the mail")
        launcher = shop.launchers[0]
        launcher.send_signal(signal.SIGTERM)
        self.assertEqual(launcher.wait(30), 0)
        log = shop.log()
        ends = {app: log.index(f"stopped app={app} how=") for app in
                ["view", "email", "invoice", "order"]}
        self.assertEqual(max(ends, key=ends.get), "order", log)


if __name__ == "__main__":
    unittest.main(verbosity=2)
